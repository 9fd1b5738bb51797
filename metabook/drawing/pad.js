// The drawing pad: strokes to a picture, the picture to an embedding, the embedding to the nearest prototype.
// Plain JavaScript, nothing loaded from anywhere. One expression, so that a test can evaluate it by itself.
(() => {
  "use strict";

  // --- The picture of some strokes, lists of [x, y] on a paper of side 1: what metabook/drawing/ink.py does ---------

  function drawn(strokes, { side, box, radius, smallest }) {
    const lines = strokes.filter((line) => line.length);
    if (!lines.length) throw new Error("there is no stroke to draw");
    const low = [Infinity, Infinity];
    const high = [-Infinity, -Infinity];
    for (const point of lines.flat()) {
      for (const k of [0, 1]) {
        low[k] = Math.min(low[k], point[k]);
        high[k] = Math.max(high[k], point[k]);
      }
    }
    const scale = box / Math.max(high[0] - low[0], high[1] - low[1], smallest);
    const fitted = (point) => [0, 1].map((k) => (point[k] - (low[k] + high[k]) / 2) * scale + side / 2);
    const picture = new Float32Array(side * side);
    for (const line of lines) {
      const points = line.map(fitted);
      for (let i = 0; i < Math.max(points.length - 1, 1); i++) {
        press(picture, side, radius, points[i], points[Math.min(i + 1, points.length - 1)]);
      }
    }
    return picture;
  }

  // Ink on the pixels near one segment: full under the pen, none a pixel further.
  function press(picture, side, radius, [ax, ay], [bx, by]) {
    const reach = radius + 1;
    const [dx, dy] = [bx - ax, by - ay];
    const length = Math.max(dx * dx + dy * dy, 1e-12);
    const first = (a, b) => Math.max(0, Math.floor(Math.min(a, b) - reach));
    const last = (a, b) => Math.min(side - 1, Math.ceil(Math.max(a, b) + reach));
    for (let row = first(ay, by); row <= last(ay, by); row++) {
      for (let column = first(ax, bx); column <= last(ax, bx); column++) {
        const [px, py] = [column + 0.5 - ax, row + 0.5 - ay];
        const part = Math.min(1, Math.max(0, (px * dx + py * dy) / length));
        const ink = Math.min(1, radius + 0.5 - Math.hypot(px - part * dx, py - part * dy));
        const at = row * side + column;
        if (ink > picture[at]) picture[at] = ink;
      }
    }
  }

  // --- The network: blocks of a 3 x 3 convolution, ReLU and 2 x 2 max-pooling ---------------------------------------

  // Weights from a safetensors file in base64: eight bytes of length, a JSON header, then numbers of 16 bits.
  function blocks(base64) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const start = 8 + view.getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
    const tensor = (name) => {
      const [from, to] = header[name].data_offsets;
      if (header[name].dtype !== "F16") throw new Error(name + " is not of 16 bits");
      const at = (_, i) => half(view.getUint16(start + from + 2 * i, true));
      return { shape: header[name].shape, values: Float32Array.from({ length: (to - from) / 2 }, at) };
    };
    const place = (name) => Number(name.match(/\.blocks\.(\d+)\.weight$/)?.[1] ?? NaN);
    const names = Object.keys(header).filter((name) => !Number.isNaN(place(name)));
    names.sort((a, b) => place(a) - place(b));
    return names.map((name) => ({ weight: tensor(name), bias: tensor(name.replace(/weight$/, "bias")) }));
  }

  function half(bits) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }

  function embed(picture, net, side) {
    let x = picture;
    for (const layer of net) {
      x = forward(x, side, layer);
      side >>= 1;
    }
    return x;
  }

  function forward(x, side, { weight, bias }) {
    const [outputs, inputs] = weight.shape;
    const wide = side + 2; // a rim of zeros
    const small = side >> 1;
    const padded = new Float32Array(inputs * wide * wide);
    for (let c = 0; c < inputs; c++) {
      for (let row = 0; row < side; row++) {
        const from = (c * side + row) * side;
        padded.set(x.subarray(from, from + side), (c * wide + row + 1) * wide + 1);
      }
    }
    const map = new Float32Array(side * side);
    const out = new Float32Array(outputs * small * small);
    for (let o = 0; o < outputs; o++) {
      map.fill(bias.values[o]);
      for (let c = 0; c < inputs; c++) {
        for (let tap = 0; tap < 9; tap++) {
          const w = weight.values[(o * inputs + c) * 9 + tap];
          const shift = Math.floor(tap / 3) * wide + (tap % 3);
          for (let row = 0; row < side; row++) {
            const from = (c * wide + row) * wide + shift;
            for (let column = 0; column < side; column++) map[row * side + column] += w * padded[from + column];
          }
        }
      }
      for (let row = 0; row < small; row++) {
        for (let column = 0; column < small; column++) {
          const at = 2 * row * side + 2 * column;
          const most = Math.max(map[at], map[at + 1], map[at + side], map[at + side + 1]);
          out[(o * small + row) * small + column] = Math.max(0, most);
        }
      }
    }
    return out;
  }

  // --- The nearest class mean -----------------------------------------------------------------------------------------

  function mean(vectors) {
    return vectors[0].map((_, i) => vectors.reduce((sum, each) => sum + each[i], 0) / vectors.length);
  }

  // Probabilities: the softmax of minus the squared distances to the class means.
  function classify(query, examples) {
    const scores = examples.map((each) => -mean(each).reduce((sum, c, i) => sum + (c - query[i]) ** 2, 0));
    const best = Math.max(...scores);
    const parts = scores.map((score) => Math.exp(score - best));
    const total = parts.reduce((sum, part) => sum + part, 0);
    return parts.map((part) => part / total);
  }

  // --- The page -------------------------------------------------------------------------------------------------------

  function mount(root, base64, settings) {
    const net = blocks(base64);
    const find = (name) => root.querySelector(`[data-part="${name}"]`);
    const [paper, keep, undo, clear, fill, restart, says] =
      ["paper", "keep", "undo", "clear", "fill", "restart", "says"].map(find);
    const slots = [...root.querySelectorAll('[data-part="slot"]')];
    let strokes = []; // on the paper now
    let taught = []; // {slot, picture, z}, in the order of teaching
    let drawing = null; // the stroke under the pointer
    let pen = null; // of the keyboard: {x, y, down}

    const of = (slot) => taught.filter((each) => each.slot === slot);
    const empty = () => slots.findIndex((_, slot) => !of(slot).length); // -1: none

    function paint() {
      const g = paper.getContext("2d");
      const size = paper.width;
      g.clearRect(0, 0, size, size);
      g.lineWidth = size / 28;
      g.lineCap = g.lineJoin = "round";
      for (const line of strokes) {
        g.beginPath();
        g.moveTo(line[0][0] * size, line[0][1] * size);
        for (const [x, y] of line) g.lineTo(x * size, y * size);
        g.stroke();
      }
      if (pen) {
        g.lineWidth = 2;
        g.beginPath();
        g.arc(pen.x * size, pen.y * size, pen.down ? 8 : 14, 0, 7);
        g.stroke();
      }
    }

    function thumbnail(slot) {
      const canvas = slots[slot].querySelector("canvas");
      const g = canvas.getContext("2d");
      g.clearRect(0, 0, settings.side, settings.side);
      const [first] = of(slot);
      if (!first) return;
      const data = g.createImageData(settings.side, settings.side); // black where it is not transparent
      first.picture.forEach((ink, i) => (data.data[4 * i + 3] = 255 * ink));
      g.putImageData(data, 0, 0);
    }

    function update() {
      const next = empty();
      const ready = next < 0 && strokes.length > 0;
      const picture = strokes.length ? drawn(strokes, settings) : null;
      const p = ready ? classify(embed(picture, net, settings.side), slots.map((_, s) => of(s).map((e) => e.z))) : null;
      const answer = p ? p.indexOf(Math.max(...p)) : -1;
      root.dataset.answer = answer;
      slots.forEach((button, slot) => {
        const name = `Character ${slot + 1}`;
        const number = of(slot).length;
        const percent = p ? Math.round(100 * p[slot]) : 0;
        button.disabled = !strokes.length || (next >= 0 && slot > next);
        button.classList.toggle("best", slot === answer);
        button.querySelector("output").textContent = p ? `${percent} %` : number ? `${number} ×` : "empty";
        button.querySelector("i").style.width = `${percent}%`;
        const held = number ? `${number} example${number > 1 ? "s" : ""}` : "empty";
        button.setAttribute("aria-label", `${name}, ${p ? `${percent} %` : held}. Say that the drawing is ${name}`);
        thumbnail(slot);
      });
      keep.disabled = !strokes.length || next < 0;
      keep.textContent = next < 0 ? "All are kept" : `Keep as character ${next + 1}`;
      undo.disabled = !strokes.length && !taught.length;
      clear.disabled = !strokes.length;
      restart.disabled = !taught.length;
      if (next >= 0) says.textContent = `Draw character ${next + 1} of ${slots.length}, then keep it.`;
      else if (!ready) says.textContent = "Now draw any of them again.";
      else {
        const sure = `${Math.round(100 * p[answer])} %`;
        says.textContent = `This is character ${answer + 1} (${sure}). If not, press the right one: it learns from that.`;
      }
      paint();
    }

    function teach(slot) {
      const picture = drawn(strokes, settings);
      taught.push({ slot, picture, z: embed(picture, net, settings.side) });
      wipe();
    }

    function wipe() {
      strokes = [];
      drawing = null;
      if (pen) pen.down = false;
      update();
    }

    function goBack() {
      if (strokes.length) strokes.pop();
      else taught.pop();
      drawing = null;
      if (pen) pen.down = false;
      update();
    }

    const on = (element, kind, act) => element.addEventListener(kind, act);
    on(keep, "click", () => teach(empty()));
    on(undo, "click", goBack);
    on(clear, "click", wipe);
    on(restart, "click", () => ((taught = []), wipe()));
    on(fill, "click", () => {
      taught = [];
      settings.samples.forEach((sample, slot) => ((strokes = sample), teach(slot)));
    });
    slots.forEach((button, slot) => on(button, "click", () => teach(slot)));

    const clamped = (value) => Math.min(1, Math.max(0, value));
    const place = (event) => {
      const box = paper.getBoundingClientRect();
      return [clamped((event.clientX - box.left) / box.width), clamped((event.clientY - box.top) / box.height)];
    };
    on(paper, "pointerdown", (event) => {
      if (event.button || drawing) return;
      paper.setPointerCapture(event.pointerId);
      pen = null;
      drawing = [place(event)];
      strokes.push(drawing);
      paint();
    });
    on(paper, "pointermove", (event) => {
      if (!drawing) return;
      drawing.push(place(event));
      paint();
    });
    const lift = () => {
      if (!drawing) return;
      drawing = null;
      update();
    };
    on(paper, "pointerup", lift);
    on(paper, "pointercancel", lift);

    const STEP = 1 / 32;
    const moves = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
    on(paper, "keydown", (event) => {
      const key = event.key;
      if (key in moves) {
        pen ??= { x: 0.5, y: 0.5, down: false };
        pen.x = clamped(pen.x + moves[key][0]);
        pen.y = clamped(pen.y + moves[key][1]);
        if (pen.down) strokes.at(-1).push([pen.x, pen.y]);
        paint();
      } else if (key === " ") {
        pen ??= { x: 0.5, y: 0.5, down: false };
        pen.down = !pen.down;
        if (pen.down) strokes.push([[pen.x, pen.y]]);
        update();
      } else if (key === "Enter" && !keep.disabled) teach(empty());
      else if (key === "Backspace" || (key === "z" && (event.ctrlKey || event.metaKey))) goBack();
      else if (key === "Escape" || key === "Delete") wipe();
      else return;
      event.preventDefault();
    });
    on(paper, "blur", () => ((pen = null), update()));
    update();
  }

  return { drawn, blocks, embed, classify, mount };
})()
