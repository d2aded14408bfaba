//! An action handler that keeps the time: when it was called, when its caller gave up, when it was asked to undo.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http;

/// How long something may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was heard of one action.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// First byte of the call.
    pub asked: Option<Instant>,
    /// The caller closed the connection before it had an answer.
    pub given_up: Option<Instant>,
    /// First byte of the last call to undo it.
    pub undone: Option<Instant>,
    /// Calls to undo it.
    pub undos: usize,
}

/// A handler on loopback. It answers at once, save an action with a parameter `delay_ms` above zero: that it never answers.
pub struct Handler {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    heard: Mutex<BTreeMap<String, Heard>>,
    changed: Condvar,
}

impl Shared {
    fn heard(&self) -> MutexGuard<'_, BTreeMap<String, Heard>> {
        self.heard.lock().expect("a lock that nobody broke")
    }

    fn note(&self, action_id: &str, change: impl FnOnce(&mut Heard)) {
        change(self.heard().entry(action_id.to_owned()).or_default());
        self.changed.notify_all();
    }
}

impl Handler {
    /// Starts listening.
    #[must_use]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
        let address = listener.local_addr().expect("the port that was bound");
        let shared = Arc::new(Shared::default());
        let service = Arc::clone(&shared);
        thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let service = Arc::clone(&service);
                // A thread for each, so that what one connection waits for makes no other late.
                thread::spawn(move || serve(connection, &service));
            }
        });
        Self { address, shared }
    }

    /// Its base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was heard since the last time this was asked, by action.
    #[must_use]
    pub fn take(&self) -> BTreeMap<String, Heard> {
        std::mem::take(&mut *self.shared.heard())
    }

    /// Waits until something is heard of an action.
    pub fn wait(&self, action_id: &str, holds: impl Fn(&Heard) -> bool) {
        let unheard = |heard: &mut BTreeMap<String, Heard>| !heard.get(action_id).is_some_and(&holds);
        let (_heard, waited) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.heard(), PATIENCE, unheard)
            .expect("a lock that nobody broke");
        assert!(!waited.timed_out(), "waited in vain for a call about {action_id}");
    }
}

fn serve(connection: TcpStream, shared: &Shared) {
    let _ = connection.set_nodelay(true);
    let mut answers = connection.try_clone().expect("a second handle of the connection");
    let mut reader = BufReader::new(connection);
    loop {
        // The first byte is what counts: reading the rest is this handler's own time.
        if !matches!(reader.fill_buf(), Ok(bytes) if !bytes.is_empty()) {
            return;
        }
        let at = Instant::now();
        let Some((path, body)) = http::receive(&mut reader) else {
            return;
        };
        let call: Value = serde_json::from_slice(&body).unwrap_or_default();
        let action_id = call["action_id"].as_str().unwrap_or_default();
        if path.starts_with("/rollbacks/") {
            shared.note(action_id, |heard| {
                heard.undone = Some(at);
                heard.undos += 1;
            });
        } else if call["parameters"]["delay_ms"].as_u64().unwrap_or_default() > 0 {
            shared.note(action_id, |heard| heard.asked = Some(at));
            // Whatever ends the connection, its caller waits no more.
            let _ = reader.read(&mut [0]);
            let at = Instant::now();
            shared.note(action_id, |heard| heard.given_up = Some(at));
            return;
        }
        if answers
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .is_err()
        {
            return;
        }
    }
}
