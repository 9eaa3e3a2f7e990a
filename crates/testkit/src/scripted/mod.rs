//! A server that does as it is told: it delays, holds, fails or shuffles answers, by opcode and node, dies on demand,
//! and keeps a journal of everything in the order in which it happened.
//!
//! It has a link of its own in memory, so a client needs no socket, no virtual machine and no second process. Behind
//! the script stands the client crate's toy server, which knows how to answer.

mod journal;
pub mod served;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ashore_client::link::{Closed, Link, Message, Receiver};
use ashore_client::toy::{Pages, Toy};
use ashore_client::{Client, Options};
use ashore_wire::reply::error_header;
use ashore_wire::{Errno, Opcode, RequestId};
use parking_lot::{Condvar, Mutex};
use zerocopy::IntoBytes;

pub use journal::{Entry, Journal, What};

/// How long a test waits for something to arrive before it fails.
pub const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Pages of a scripted link that nobody asked to be larger or smaller.
pub const DEFAULT_PAGES: u32 = 2048;

/// Which requests a rule is for.
#[derive(Clone, Copy, Debug)]
pub struct Which {
    opcode: Opcode,
    node: Option<u64>,
    times: usize,
}

/// All requests of this kind.
pub fn all(opcode: Opcode) -> Which {
    Which { opcode, node: None, times: usize::MAX }
}

impl Which {
    /// Only those about this node.
    #[must_use]
    pub fn of(self, node: u64) -> Which {
        Which { node: Some(node), ..self }
    }

    /// Only the next so many.
    #[must_use]
    pub fn next(self, times: usize) -> Which {
        Which { times, ..self }
    }
}

#[derive(Clone, Copy, Debug)]
enum Deed {
    Delay(Duration),
    Fail(Errno),
    /// Until the hold with this number is released.
    Hold(u64),
    /// The first so many bytes of a WRITE are taken.
    Shorten(u32),
}

/// The server's side of a link.
pub struct Scripted {
    /// The file system behind the script.
    pub toy: Mutex<Toy>,
    pages: Pages,
    state: Mutex<State>,
    changed: Condvar,
    shuffle: AtomicU64,
}

struct State {
    rules: Vec<(Which, Deed)>,
    waiting: VecDeque<Waiting>,
    journal: Journal,
    receiver: Option<Arc<dyn Receiver>>,
    next_hold: u64,
    released: Vec<u64>,
    dead: bool,
    snapshots: Vec<(u64, Vec<u8>)>,
    watched: Option<String>,
}

struct Waiting {
    message: Message,
    opcode: Opcode,
    node: u64,
    due: Instant,
    hold: Option<u64>,
    fail: Option<Errno>,
    shorten: Option<u32>,
}

/// Requests that are held back until this is dropped or released.
pub struct Hold {
    server: Arc<Scripted>,
    number: u64,
}

impl Hold {
    /// Lets them go.
    pub fn release(self) {}
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.server.state.lock().released.push(self.number);
        self.server.changed.notify_all();
    }
}

impl Scripted {
    /// A server without a script, and a client of it.
    pub fn start(options: Options) -> (Arc<Scripted>, Client) {
        let server = Scripted::new(Toy::default(), DEFAULT_PAGES);
        let client = server.connect(options);
        (server, client)
    }

    /// A server that answers from this toy.
    pub fn new(toy: Toy, pages: u32) -> Arc<Scripted> {
        Arc::new(Scripted {
            toy: Mutex::new(toy),
            pages: Pages::new(pages),
            state: Mutex::new(State {
                rules: Vec::new(),
                waiting: VecDeque::new(),
                journal: Journal::default(),
                receiver: None,
                next_hold: 0,
                released: Vec::new(),
                dead: false,
                snapshots: Vec::new(),
                watched: None,
            }),
            changed: Condvar::new(),
            shuffle: AtomicU64::new(0),
        })
    }

    /// A client of this server.
    pub fn connect(self: &Arc<Scripted>, options: Options) -> Client {
        Client::new(ScriptedLink(Arc::clone(self)), options).expect("the script lets INIT through")
    }

    /// Answers requests in an order that this seed decides, whenever there are several.
    pub fn shuffle(&self, seed: u64) {
        self.shuffle.store(seed | 1, Ordering::Relaxed);
    }

    /// These requests are answered so much later.
    pub fn delay(&self, which: Which, by: Duration) {
        self.state.lock().rules.push((which, Deed::Delay(by)));
    }

    /// These requests fail, and are not done.
    pub fn fail(&self, which: Which, errno: Errno) {
        self.state.lock().rules.push((which, Deed::Fail(errno)));
    }

    /// Of these WRITEs only so many bytes are taken.
    pub fn shorten(&self, which: Which, to: u32) {
        self.state.lock().rules.push((which, Deed::Shorten(to)));
    }

    /// These requests are neither done nor answered until they are released.
    #[must_use = "dropping it releases them"]
    pub fn hold(self: &Arc<Scripted>, which: Which) -> Hold {
        let mut state = self.state.lock();
        let number = state.next_hold;
        state.next_hold += 1;
        state.rules.push((which, Deed::Hold(number)));
        Hold { server: Arc::clone(self), number }
    }

    /// The script ends; what is held stays so.
    pub fn clear(&self) {
        self.state.lock().rules.clear();
    }

    /// The server dies: nothing that waits is answered.
    pub fn kill(&self) {
        let mut state = self.state.lock();
        state.dead = true;
        state.waiting.clear();
        let receiver = state.receiver.take();
        drop(state);
        self.changed.notify_all();
        if let Some(receiver) = receiver {
            receiver.ended();
        }
    }

    /// What has happened so far.
    pub fn journal(&self) -> Journal {
        self.state.lock().journal.clone()
    }

    /// Forgets what has happened so far.
    pub fn forget_journal(&self) {
        self.state.lock().journal.clear();
    }

    /// Waits until so many requests of this kind have arrived since the journal was last forgotten.
    pub fn wait_for(&self, opcode: Opcode, count: usize) {
        let deadline = Instant::now() + ARRIVAL_TIMEOUT;
        let mut state = self.state.lock();
        while state.journal.arrived(opcode) < count {
            let timed_out = self.changed.wait_until(&mut state, deadline).timed_out();
            assert!(!timed_out, "{count} {opcode} did not arrive: {:#?}", state.journal);
        }
    }

    /// The node of a path.
    pub fn node(&self, path: &str) -> u64 {
        self.toy.lock().node_of(path).expect("the test has made it")
    }

    /// The content of a file on the server.
    pub fn content(&self, path: &str) -> Vec<u8> {
        self.toy.lock().content(path).expect("the test has made it")
    }

    /// From now on each SYNCFS makes this file's content "stable": [`Scripted::stable`] returns it.
    pub fn watch(&self, path: &str) {
        self.state.lock().watched = Some(path.into());
    }

    /// The watched file's content as of the last SYNCFS.
    pub fn stable(&self) -> Vec<u8> {
        self.state.lock().snapshots.last().map(|(_, content)| content.clone()).unwrap_or_default()
    }

    fn arrive(&self, message: Message) -> Result<(), Closed> {
        let opcode = Opcode::from_raw(field(&message.head, 4)).expect("the client sends known opcodes");
        let node = u64::from_ne_bytes(message.head[16..24].try_into().unwrap());
        let mut state = self.state.lock();
        if state.dead {
            return Err(Closed);
        }
        let id = u64::from_ne_bytes(message.head[8..16].try_into().unwrap());
        state.journal.note(What::Arrived, opcode, node, id, &message.head);
        let mut waiting =
            Waiting { message, opcode, node, due: Instant::now(), hold: None, fail: None, shorten: None };
        state.apply_rules(&mut waiting);
        state.waiting.push_back(waiting);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    fn serve(self: &Arc<Scripted>) {
        let mut state = self.state.lock();
        while !state.dead {
            let now = Instant::now();
            let ready: Vec<usize> = state.ready(now);
            let Some(position) = self.pick(&ready) else {
                match state
                    .waiting
                    .iter()
                    .filter(|waiting| waiting.hold.is_none())
                    .map(|waiting| waiting.due)
                    .min()
                {
                    Some(due) => _ = self.changed.wait_until(&mut state, due),
                    None => self.changed.wait(&mut state),
                }
                continue;
            };
            let waiting = state.waiting.remove(position).expect("it is there");
            let Some(receiver) = state.receiver.clone() else { return };
            drop(state);
            let reply = self.act(&waiting);
            state = self.state.lock();
            if let Some(reply) = reply {
                let error = -(field(&reply, 4) as i32);
                let Waiting { opcode, node, .. } = waiting;
                state.journal.note(
                    What::Answered(error),
                    opcode,
                    node,
                    waiting.message.id,
                    &waiting.message.head,
                );
                drop(state);
                self.changed.notify_all();
                if waiting.message.id != 0 {
                    let completion = self.pages.deliver(&waiting.message, reply);
                    receiver.completed(completion);
                }
                state = self.state.lock();
            }
        }
    }

    fn pick(&self, ready: &[usize]) -> Option<usize> {
        let seed = self.shuffle.load(Ordering::Relaxed);
        if seed == 0 || ready.len() < 2 {
            return ready.first().copied();
        }
        let next = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.shuffle.store(next | 1, Ordering::Relaxed);
        ready.get((next >> 33) as usize % ready.len()).copied()
    }

    fn act(&self, waiting: &Waiting) -> Option<Vec<u8>> {
        let id = RequestId(u64::from_ne_bytes(waiting.message.head[8..16].try_into().unwrap()));
        if let Some(errno) = waiting.fail {
            return Some(error_header(id, errno).as_bytes().to_vec());
        }
        let mut head = waiting.message.head.clone();
        let mut payload = self.pages.gather(&waiting.message.payload);
        if let Some(shorter) = waiting.shorten {
            let cut = payload.len().saturating_sub(shorter as usize);
            payload.truncate(payload.len() - cut);
            let length = field(&head, 0) - cut as u32;
            head[..4].copy_from_slice(&length.to_ne_bytes());
            head[56..60].copy_from_slice(&(payload.len() as u32).to_ne_bytes());
        }
        let mut toy = self.toy.lock();
        let reply = toy.answer(&head, &payload);
        if waiting.opcode == Opcode::Syncfs {
            let mut state = self.state.lock();
            if let Some(content) = state.watched.as_ref().and_then(|path| toy.content(path)) {
                state.snapshots.push((id.0, content));
            }
        }
        reply
    }
}

impl State {
    fn apply_rules(&mut self, waiting: &mut Waiting) {
        for (which, deed) in &mut self.rules {
            let fits = which.opcode == waiting.opcode && which.node.is_none_or(|node| node == waiting.node);
            if !fits || which.times == 0 {
                continue;
            }
            which.times -= usize::from(which.times != usize::MAX);
            match *deed {
                Deed::Delay(by) => waiting.due += by,
                Deed::Fail(errno) => waiting.fail = Some(errno),
                Deed::Hold(number) => waiting.hold = Some(number),
                Deed::Shorten(to) => waiting.shorten = Some(to),
            }
        }
    }

    fn ready(&mut self, now: Instant) -> Vec<usize> {
        let released = &self.released;
        for waiting in &mut self.waiting {
            if waiting.hold.is_some_and(|hold| released.contains(&hold)) {
                waiting.hold = None;
            }
        }
        let ready = |(_, waiting): &(usize, &Waiting)| waiting.hold.is_none() && waiting.due <= now;
        self.waiting.iter().enumerate().filter(ready).map(|(position, _)| position).collect()
    }
}

fn field(head: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(head[at..at + 4].try_into().unwrap())
}

struct ScriptedLink(Arc<Scripted>);

impl Link for ScriptedLink {
    fn pages(&self) -> u32 {
        self.0.pages.len()
    }

    fn read_page(&self, page: u32, offset: usize, into: &mut [u8]) {
        self.0.pages.read(page, offset, into);
    }

    fn write_page(&self, page: u32, offset: usize, from: &[u8]) {
        self.0.pages.write(page, offset, from);
    }

    fn zero_page(&self, page: u32, range: Range<usize>) {
        self.0.pages.zero(page, range);
    }

    fn start(&self, receiver: Arc<dyn Receiver>) {
        self.0.state.lock().receiver = Some(receiver);
        let server = Arc::clone(&self.0);
        std::thread::spawn(move || server.serve());
    }

    fn submit(&self, message: Message) -> Result<(), Closed> {
        self.0.arrive(message)
    }

    fn close(&self) {
        let mut state = self.0.state.lock();
        state.dead = true;
        state.receiver = None;
        drop(state);
        self.0.changed.notify_all();
    }
}
