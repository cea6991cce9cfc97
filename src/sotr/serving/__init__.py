"""A trained model as an HTTP service, with a page to try it."""

from sotr.serving.app import create_app
from sotr.serving.server import serve
from sotr.serving.settings import Limits

__all__ = ["Limits", "create_app", "serve"]
