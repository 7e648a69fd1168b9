"""The page: generate, search and rerank in the browser. Needs Gradio (clipguide[ui])."""

from .models import Models
from .server import listen, serve

__all__ = ["Models", "listen", "serve"]
