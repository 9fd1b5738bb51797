"""Closed forms behind the Mathematics part: one module a chapter, each function a formula that the chapter derives."""
