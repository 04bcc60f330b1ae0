"""A real OTLP/HTTP receiver on loopback that keeps what it gets, for tests."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

PATHS = {
    "/v1/traces": (ExportTraceServiceRequest, ExportTraceServiceResponse),
    "/v1/metrics": (ExportMetricsServiceRequest, ExportMetricsServiceResponse),
}


class OtlpReceiver:
    """Use as a context manager; `endpoint` is what a client is configured with."""

    def __init__(self):
        self.requests = []
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path not in PATHS:
                    self.send_error(404)
                    return
                request, response = PATHS[self.path]
                message = request.FromString(body)
                with receiver._lock:
                    receiver.requests.append(message)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(response().SerializeToString())

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def spans(self):
        """Every span received."""
        with self._lock:
            requests = [r for r in self.requests if isinstance(r, ExportTraceServiceRequest)]
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def metrics(self):
        """The last state received of each metric, by name."""
        with self._lock:
            requests = [r for r in self.requests if isinstance(r, ExportMetricsServiceRequest)]
        return {
            metric.name: metric
            for request in requests
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def resources(self):
        """The resource attributes seen, as one dict for each request."""
        with self._lock:
            requests = list(self.requests)
        found = []
        for request in requests:
            name = "resource_spans" if hasattr(request, "resource_spans") else "resource_metrics"
            for resource in getattr(request, name):
                pairs = resource.resource.attributes
                found.append({pair.key: pair.value.string_value for pair in pairs})
        return found
