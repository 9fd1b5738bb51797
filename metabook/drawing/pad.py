from pathlib import Path

EMBEDDING = Path(__file__).with_name("embedding.safetensors")
pad = published = None
