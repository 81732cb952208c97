"""The networks, each written down once: layers, the fast functions under them, what is derived."""
