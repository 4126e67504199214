"""gRPC on trio over the h2 library: the mesh's control channels (xDS, CA, node service).

Bytes in and bytes out; callers serialise protobuf. Not for the data path (see transport/http2).
"""
