"""Starts ministack with Nagle's algorithm off.

Its Lambda Runtime API server answers each bootstrap in two small writes, and with Nagle on the second one waits for the
peer's delayed acknowledgement: a warm invocation then takes about 50 ms instead of 10.
"""

import socketserver

from ministack.app import main

socketserver.StreamRequestHandler.disable_nagle_algorithm = True

if __name__ == "__main__":
    main()
