//! The Lambda Runtime API, as far as a bootstrap needs it: hands out events, takes the answers.

use std::collections::BTreeMap;
use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http;

/// How long a bootstrap may take before the bench gives up on it.
const PATIENCE: Duration = Duration::from_secs(90);

struct Request {
    at: Instant,
    path: String,
    body: Vec<u8>,
    connection: TcpStream,
}

/// A Runtime API server on loopback.
pub struct RuntimeApi {
    address: SocketAddr,
    requests: Receiver<Request>,
}

impl RuntimeApi {
    /// Starts listening.
    #[must_use]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
        let address = listener.local_addr().expect("the port that was bound");
        let (sender, requests) = channel();
        thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let sender = sender.clone();
                thread::spawn(move || {
                    // Small answers must not wait for acknowledgements: Lambda's own side does not.
                    let _ = connection.set_nodelay(true);
                    let answers = connection.try_clone().expect("a second handle of the connection");
                    let mut reader = BufReader::new(connection);
                    while let Some((path, body)) = http::receive(&mut reader) {
                        let at = Instant::now();
                        let connection = answers.try_clone().expect("a handle to answer through");
                        let _ = sender.send(Request {
                            at,
                            path,
                            body,
                            connection,
                        });
                    }
                });
            }
        });
        Self { address, requests }
    }

    /// Executes a bootstrap and waits for its first poll.
    #[must_use]
    pub fn execute(&self, bootstrap: &Path, env: &BTreeMap<String, String>) -> Bootstrap<'_> {
        while self.requests.try_recv().is_ok() {}
        let mut command = Command::new(bootstrap);
        command
            .env_clear()
            .envs(env)
            .env("AWS_LAMBDA_RUNTIME_API", self.address.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let before = Instant::now();
        let process = command
            .spawn()
            .unwrap_or_else(|e| panic!("executing {}: {e}", bootstrap.display()));
        let mut started = Bootstrap {
            api: self,
            process,
            poll: None,
            init: Duration::ZERO,
        };
        started.poll = Some(started.request("/next"));
        started.init = started
            .poll
            .as_ref()
            .map_or(Duration::ZERO, |poll| poll.at - before);
        started
    }
}

/// A bootstrap that waits for an event. Ends with this value.
pub struct Bootstrap<'a> {
    api: &'a RuntimeApi,
    process: Child,
    poll: Option<Request>,
    /// From just before `exec` to the first poll.
    pub init: Duration,
}

impl Bootstrap<'_> {
    fn request(&mut self, wanted: &str) -> Request {
        let request = self.api.requests.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            panic!(
                "no request for {wanted} in time; the bootstrap's state: {:?}",
                self.process.try_wait()
            )
        });
        let said = String::from_utf8_lossy(&request.body);
        assert!(
            request.path.ends_with(wanted),
            "wanted {wanted}, got {}: {said}",
            request.path
        );
        request
    }

    /// Hands out one event, takes the answer, and waits until the bootstrap polls again.
    pub fn invoke(&mut self, event: &Value) -> Value {
        self.hand_out(event);
        let response = self.request("/response");
        let value = serde_json::from_slice(&response.body).unwrap_or(Value::Null);
        answer(response, "202 Accepted", "");
        self.poll = Some(self.request("/next"));
        value
    }

    /// Hands out one event and does not wait for anything.
    pub fn hand_out(&mut self, event: &Value) {
        let body = event.to_string();
        let deadline = std::time::SystemTime::now() + Duration::from_secs(60);
        let deadline = deadline
            .duration_since(std::time::UNIX_EPOCH)
            .expect("a clock after 1970")
            .as_millis();
        let poll = self.poll.take().expect("a bootstrap that polls");
        answer(
            poll,
            &format!(
                "200 OK\r\ncontent-type: application/json\r\nlambda-runtime-aws-request-id: 8476a536-e9f4-11e8-9739-2dfe598c3fcd\r\n\
                 lambda-runtime-deadline-ms: {deadline}\r\n\
                 lambda-runtime-invoked-function-arn: arn:aws:lambda:us-east-1:000000000000:function:bench\r\n\
                 lambda-runtime-trace-id: Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=0"
            ),
            &body,
        );
    }

    /// Ends the process where it stands (SIGKILL), and gives back when that was.
    #[must_use]
    pub fn kill(mut self) -> Instant {
        let killed = Instant::now();
        self.process.kill().expect("killing a process of our own");
        let _ = self.process.wait();
        killed
    }

    /// CPU time of its threads that live, since they started.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        let path = format!("/proc/{}/task", self.process.id());
        let threads = std::fs::read_dir(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let nanos = threads.map_while(Result::ok).filter_map(|thread| {
            // A thread may end between the listing and this.
            let told = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            told.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanos.sum())
    }

    /// A line of `/proc/<pid>/status`, in KiB.
    #[must_use]
    pub fn memory_kib(&self, name: &str) -> f64 {
        let path = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|text| text.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("{path} has no {name}"))
    }
}

impl Drop for Bootstrap<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn answer(request: Request, head: &str, body: &str) {
    let mut connection = request.connection;
    let text = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    connection
        .write_all(text.as_bytes())
        .unwrap_or_else(|e| panic!("answering {}: {e}", request.path));
}
