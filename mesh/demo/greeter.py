"""A gRPC service of the demo, and its client: ordinary grpcio programs that know nothing of a mesh.

`python -m mesh.demo.greeter serve NAME` answers every call with its name; `python -m mesh.demo.greeter call
HOST:PORT --calls N` makes N calls on one channel, which is one connection, and prints who answered as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from concurrent import futures

import grpc

PORT = 50051
METHOD = "/demo.Greeter/Greet"
CALL_S = 10.0


class _Greeter(grpc.GenericRpcHandler):  # type: ignore[misc]  # the library has no types
    def __init__(self, name: str) -> None:
        self._name = name.encode()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> object:
        if handler_call_details.method != METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: self._name)


def serve(name: str) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4), handlers=(_Greeter(name),))
    server.add_insecure_port(f"0.0.0.0:{PORT}")
    server.start()
    server.wait_for_termination()


def call(target: str, calls: int) -> dict[str, int]:
    """How often each server answered; a failed call counts under its status' name."""
    answers: Counter[str] = Counter()
    with grpc.insecure_channel(target) as channel:
        greet = channel.unary_unary(METHOD)
        for _ in range(calls):
            try:
                answers[greet(b"", timeout=CALL_S).decode()] += 1
            except grpc.RpcError as error:
                answers[error.code().name] += 1
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mesh.demo.greeter", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve").add_argument("name")
    caller = commands.add_parser("call")
    caller.add_argument("target")
    caller.add_argument("--calls", type=int, default=40)
    options = parser.parse_args()
    if options.command == "serve":
        serve(options.name)
    else:
        print(json.dumps(call(options.target, options.calls)))


if __name__ == "__main__":
    main()
