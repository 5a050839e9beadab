"""serve a page and an HTTP interface on this machine

invfusion serve --open
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Address, model, limits."""
    parser.add_argument("--host", default="127.0.0.1", help="loopback by default: there are no passwords")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", default="photos")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-megapixels", type=float, default=4.0, help="largest picture, measured or restored")
    parser.add_argument("--max-seconds", type=float, default=120.0, help="longest restoration")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")


def run(options: argparse.Namespace) -> int:
    """Until it is stopped."""
    from invfusion.serving.server import serve

    serve(options)
    return 0
