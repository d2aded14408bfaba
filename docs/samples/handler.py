import base64, hmac, json, os, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = base64.b64decode(os.environ["HANDLER_SECRET"].removeprefix("whsec_"))
STATE, LOCK = {}, threading.Lock()  # action → "do" or "undo": keep it in the database that your work changes

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        id, at = self.headers.get("webhook-id", ""), self.headers.get("webhook-timestamp", "")
        mac = hmac.digest(KEY, f"{id}.{at}.".encode() + body, "sha256")
        expected, given = "v1," + base64.b64encode(mac).decode(), self.headers.get("webhook-signature", "")
        if not any(hmac.compare_digest(one, expected) for one in given.split()) or abs(time.time() - int(at)) > 300:
            return self.answer(401, error_code="UNAUTHORIZED", recoverable=False)
        action, wanted = id.removesuffix(":rollback"), "undo" if id.endswith(":rollback") else "do"
        with LOCK:
            before = STATE.get(action)
            if (before, wanted) == ("undo", "do"):  # this call was slow, and its rollback came first
                return self.answer(409, error_code="ROLLED_BACK", recoverable=False)
            if before != wanted and (before or wanted == "do"):  # what never happened need not be undone
                print(wanted, json.loads(body), flush=True)  # your work goes here
            STATE[action] = wanted
        self.answer(200, before=before, now=wanted)

    def answer(self, status, **body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
