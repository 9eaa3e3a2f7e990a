//! A [`Link`] to a vhost-user-fs server.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use ashore_wire::link::{Closed, Link, Message, PAGE_BYTES, Receiver};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::handshake::{ConnectError, Inflight, Server};
use super::memory::Memory;
use super::queue::{Lie, QUEUE_BYTES, Queue};
use crate::look::Look;

/// How long the thread of a queue waits for the right to reap before it looks whether the link has ended.
const REAPING_WAIT: Duration = Duration::from_millis(20);

/// How long to wait before the next try to reach a server again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(1);

/// How often the one who closes a link looks whether the server has given everything back.
const IDLE_LOOK: Duration = Duration::from_micros(100);

/// What can be chosen about a link.
#[derive(Clone, Copy, Debug)]
pub struct LinkOptions {
    /// Pages of 4 KiB for the client's cache.
    pub pages: u32,
    /// Request queues to use, at most; the server may offer fewer.
    pub request_queues: u16,
    /// How long a thread looks for answers before it sleeps, at most, in microseconds; less where looking was in vain, or where
    /// others have work for its processor. 0: sleep at once. The default is long enough for 1 MiB of data and both copies of it:
    /// a thread that sleeps until it comes takes three times as long.
    pub poll_us: u32,
    /// How long a server may take to answer while the link is made, and while it ends.
    pub patience: Duration,
    /// How long to try to reach a server again that has gone without a word, and that `ashore serve --state-file` has
    /// followed. Asks the server to keep what is in flight (INFLIGHT_SHMFD). `None`: its end is the end of the link.
    pub reconnect: Option<Duration>,
}

impl Default for LinkOptions {
    fn default() -> LinkOptions {
        let patience = Duration::from_secs(5);
        LinkOptions { pages: 16_384, request_queues: 1, poll_us: 400, patience, reconnect: None }
    }
}

/// A link to a vhost-user-fs server, over its socket.
///
/// A thread for each queue brings the answers, and one watches the connection: when the server hangs up, or breaks the
/// rules, the link ends, and the receiver is told so once. With [`LinkOptions::reconnect`] a server that hangs up is
/// looked for again first.
pub struct VhostUserLink {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    options: LinkOptions,
}

struct Shared {
    /// `None` once the link is closed.
    server: Mutex<Option<Server>>,
    socket: PathBuf,
    options: LinkOptions,
    memory: Arc<Memory>,
    queues: Vec<Queue>,
    /// If there may be another server.
    inflight: Option<Inflight>,
    /// The connection to watch from now on, after the session has moved to another server.
    moved: Mutex<Option<OwnedFd>>,
    /// How long to look for answers, for each queue.
    looks: Vec<Look>,
    /// Where the pages begin in memory.
    pages: usize,
    receiver: OnceLock<Arc<dyn Receiver>>,
    ended: AtomicBool,
    /// Readable once the link has ended.
    end: EventFd,
}

impl VhostUserLink {
    /// Connects to the server that listens at `socket`.
    pub fn connect(socket: impl AsRef<Path>, options: LinkOptions) -> Result<VhostUserLink, ConnectError> {
        let (most_queues, go_on) = (options.request_queues.max(1), options.reconnect.is_some());
        let mut server = Server::greet(socket.as_ref(), options.patience, most_queues, go_on)?;
        let count = usize::from(server.request_queues()) + 1;
        let pages = count * QUEUE_BYTES;
        let memory = Arc::new(Memory::new(pages + options.pages as usize * PAGE_BYTES)?);
        let new_queue =
            |index| Queue::new(Arc::clone(&memory), index * QUEUE_BYTES, pages, server.event_idx());
        let queues = (0..count).map(new_queue).collect::<io::Result<Vec<_>>>()?;
        let inflight = go_on.then(|| server.make_inflight(&queues)).transpose()?;
        server.start(&memory, &queues, inflight.as_ref(), &[])?;
        let shared = Shared {
            server: Mutex::new(Some(server)),
            socket: socket.as_ref().to_owned(),
            options,
            memory,
            queues,
            inflight,
            moved: Mutex::default(),
            looks: (0..count).map(|_| Look::new(options.poll_us)).collect(),
            pages,
            receiver: OnceLock::new(),
            ended: AtomicBool::new(false),
            end: EventFd::new(EFD_NONBLOCK)?,
        };
        Ok(VhostUserLink { shared: Arc::new(shared), threads: Mutex::default(), options })
    }

    /// Request queues in use.
    pub fn request_queues(&self) -> usize {
        self.shared.queues.len() - 1
    }

    /// Who serves: the process that listened at the socket.
    pub fn server_process(&self) -> io::Result<rustix::process::Pid> {
        Ok(rustix::net::sockopt::socket_peercred(self.shared.watched()?)?.pid)
    }

    /// Moves the session to another server, as a VMM does that migrates its guest: requests wait meanwhile, and none is lost nor
    /// done twice. Should it not move, it goes on where it was. Not for links that reconnect.
    ///
    /// Returns how many bytes of state were transferred. Node ids, open files and all that was agreed stay as they are.
    pub fn move_to(&self, socket: impl AsRef<Path>) -> Result<usize, ConnectError> {
        self.shared.move_to(socket.as_ref())
    }

    /// Returns when the link has ended: the server has gone or broken the rules, or this side has closed it.
    pub fn wait_until_ended(&self) {
        while !self.shared.has_ended() {
            wait_for([borrow(&self.shared.end); 2], PollFlags::IN);
        }
    }

    /// The request queue that this thread's requests take, from 1 on. Threads take queues in turn, each always the same
    /// one.
    pub fn queue_of_this_thread(&self) -> usize {
        1 + thread_number() % self.request_queues()
    }

    /// Whether this is one of the threads that bring answers, or the one that watches.
    fn is_ours(&self, id: ThreadId) -> bool {
        self.threads.lock().iter().any(|thread| thread.thread().id() == id)
    }

    /// Waits until the server has given back all that was sent, FORGETs too, unless it is gone or out of patience.
    /// A queue must not be taken back with requests in it that the server has not taken: virtiofsd would look for them
    /// for ever, in a queue that it no longer serves, and never end.
    fn await_idle_queues(&self) {
        let begun = Instant::now();
        while !self.shared.has_ended()
            && !self.shared.queues.iter().all(Queue::is_idle)
            && begun.elapsed() < self.options.patience
        {
            thread::sleep(IDLE_LOOK);
        }
    }
}

impl Link for VhostUserLink {
    fn pages(&self) -> u32 {
        self.options.pages
    }

    fn read_page(&self, page: u32, offset: usize, into: &mut [u8]) {
        assert!(offset + into.len() <= PAGE_BYTES, "within one page");
        self.read_pages(page, offset, into);
    }

    fn write_page(&self, page: u32, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= PAGE_BYTES, "within one page");
        self.write_pages(page, offset, from);
    }

    fn read_pages(&self, first: u32, offset: usize, into: &mut [u8]) {
        self.shared.memory.read(self.shared.place(first, offset), into);
    }

    fn write_pages(&self, first: u32, offset: usize, from: &[u8]) {
        self.shared.memory.write(self.shared.place(first, offset), from);
    }

    fn zero_page(&self, page: u32, range: Range<usize>) {
        const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
        self.write_page(page, range.start, &ZEROS[..range.len()]);
    }

    fn start(&self, receiver: Arc<dyn Receiver>) {
        assert!(self.shared.receiver.set(receiver).is_ok(), "a link is started once");
        let mut threads = self.threads.lock();
        for index in 0..self.shared.queues.len() {
            let shared = Arc::clone(&self.shared);
            let name = format!("ashore-reap{index}");
            let reaper = thread::Builder::new().name(name);
            match reaper.spawn(move || shared.bring_answers(index)) {
                Ok(thread) => threads.push(thread),
                Err(error) => self.shared.end(&format!("no thread could be started: {error}")),
            }
        }
        let (shared, watched) = (Arc::clone(&self.shared), self.shared.watched());
        let watcher = thread::Builder::new().name("ashore-watch".into());
        match watched.and_then(|watched| watcher.spawn(move || shared.watch(watched))) {
            Ok(thread) => threads.push(thread),
            Err(error) => self.shared.end(&format!("the connection cannot be watched: {error}")),
        }
    }

    fn submit(&self, message: Message) -> Result<(), Closed> {
        if self.shared.has_ended() {
            return Err(Closed);
        }
        let queue = if message.urgent { 0 } else { self.queue_of_this_thread() };
        self.shared.queues[queue].submit(message)
    }

    fn attend(&self, done: &mut dyn FnMut() -> bool) -> bool {
        done() || self.shared.attend(self.queue_of_this_thread(), done)
    }

    fn close(&self) {
        self.shared.queues.iter().for_each(Queue::close);
        let mut server = self.shared.server.lock().take();
        if server.is_some() && !self.is_ours(thread::current().id()) {
            self.await_idle_queues();
        }
        if let Some(server) = &mut server {
            // A server that has gone, or is silent, has let go of everything by that.
            let _ = server.take_back(self.shared.queues.len());
        }
        // Before we hang up, lest the watching thread takes it for the server's doing.
        self.shared.end_quietly();
        if let Some(server) = &server {
            server.hang_up();
        }
        let this = thread::current().id();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // A receiver may close the link it is called from.
            if thread.thread().id() != this {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for VhostUserLink {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for VhostUserLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ended = self.shared.ended.load(Ordering::Relaxed);
        f.debug_struct("VhostUserLink")
            .field("options", &self.options)
            .field("ended", &ended)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn place(&self, page: u32, offset: usize) -> usize {
        self.pages + page as usize * PAGE_BYTES + offset
    }

    /// Brings the answers of one queue until the link ends. Sleeps while threads that wait look for themselves.
    fn bring_answers(&self, index: usize) {
        let (queue, look) = (&self.queues[index], &self.looks[index]);
        while !self.has_ended() {
            // Not for ever: the one who has the right may be the one who ends the link, and waits for this thread.
            let Some(reaping) = queue.wait_for_reaping(REAPING_WAIT) else { continue };
            queue.want_no_interrupt();
            if self.bring_while_it_is_worth_it(index).is_err() {
                return;
            }
            let sleep = queue.ask_for_interrupt();
            drop(reaping);
            if sleep {
                self.sleep(queue);
                look.woken();
            }
        }
    }

    fn bring_while_it_is_worth_it(&self, index: usize) -> Result<(), Lie> {
        let (queue, look) = (&self.queues[index], &self.looks[index]);
        loop {
            self.bring_what_is_there(index)?;
            // After the end nothing is brought, however much is there. And threads that look for their answers themselves
            // must find nobody in their way.
            let over = self.has_ended() || look.was_lent();
            if over || !look.finds(|| queue.has_completions(), || self.has_ended()) {
                return Ok(());
            }
        }
    }

    /// The thread that waits brings answers itself, unless another does. Before it leaves, it asks for an interrupt, which
    /// wakes the queue's own thread; so there is always one who brings what comes.
    fn attend(&self, index: usize, done: &mut dyn FnMut() -> bool) -> bool {
        let (queue, look) = (&self.queues[index], &self.looks[index]);
        if !look.is_on() {
            return false;
        }
        look.lend();
        let Some(reaping) = queue.try_reaping() else { return done() };
        queue.want_no_interrupt();
        let mut is_done = false;
        loop {
            if self.bring_what_is_there(index).is_err() {
                return false;
            }
            is_done = is_done || done();
            let over = is_done || self.has_ended();
            if !over && look.finds(|| queue.has_completions(), || self.has_ended()) {
                continue;
            }
            if queue.ask_for_interrupt() || self.has_ended() {
                break;
            }
        }
        drop(reaping);
        is_done
    }

    /// Brings what has been completed, with the right to reap. A lie ends the link.
    fn bring_what_is_there(&self, index: usize) -> Result<(), Lie> {
        loop {
            if self.has_ended() {
                return Ok(());
            }
            match self.queues[index].reap() {
                Ok(None) => return Ok(()),
                // Id 0 has no answer that anybody waits for.
                Ok(Some(completion)) if completion.id == 0 => {}
                Ok(Some(completion)) => {
                    self.receiver.get().inspect(|receiver| receiver.completed(completion));
                }
                Err(lie) => {
                    self.end(&format!("the server broke the rules of queue {index}: {lie}"));
                    return Err(lie);
                }
            }
        }
    }

    fn sleep(&self, queue: &Queue) {
        wait_for([borrow(queue.call()), borrow(&self.end)], PollFlags::IN);
        let _ = queue.call().read();
    }

    /// Ends the link when the server hangs up. It says nothing on the connection unless asked, so whatever comes
    /// while nobody asks is its end.
    fn watch(&self, mut socket: OwnedFd) {
        loop {
            let ready = wait_for([socket.as_fd(), borrow(&self.end)], PollFlags::RDHUP);
            if ready[1] || self.has_ended() {
                return;
            }
            if ready[0] {
                if let Some(next) = self.moved.lock().take() {
                    socket = next;
                    continue;
                }
                match self.options.reconnect.and_then(|patience| self.reconnect(patience)) {
                    Some(next) => socket = next,
                    None => return self.end("the server has hung up"),
                }
            }
        }
    }

    fn watched(&self) -> io::Result<OwnedFd> {
        self.server.lock().as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?.socket()
    }

    /// Waits for a server at the same socket, and goes on with it. `None`: none came in time, or one that is another.
    ///
    /// Nothing is sent again, and no ring changes: the server takes what it finds in flight. The one before it does nothing
    /// any more, for the connection of a process is closed when all its threads have left the memory that they share.
    fn reconnect(&self, patience: Duration) -> Option<OwnedFd> {
        tracing::warn!("the server has hung up; it is tried to reach it again for {patience:?}");
        let begun = Instant::now();
        while !self.has_ended() && begun.elapsed() < patience {
            match self.go_on() {
                Ok(socket) => {
                    tracing::info!("the server is back after {:?}", begun.elapsed());
                    return Some(socket);
                }
                Err(error @ ConnectError::Lacks { .. }) => {
                    tracing::error!("the server is back, and is another: {error}");
                    return None;
                }
                Err(error) => tracing::debug!("not yet: {error}"),
            }
            thread::sleep(RECONNECT_PAUSE);
        }
        None
    }

    /// A server with as many queues as the one before it.
    fn greet_another(&self, socket: &Path, go_on: bool) -> Result<Server, ConnectError> {
        let queues = self.queues.len() as u16 - 1;
        let server = Server::greet(socket, self.options.patience, queues, go_on)?;
        if server.request_queues() != queues
            || self.queues.iter().any(|queue| queue.event_idx() != server.event_idx())
        {
            let feature = "the queues and features that the server before it had";
            return Err(ConnectError::Lacks { path: socket.to_owned(), feature });
        }
        Ok(server)
    }

    fn move_to(&self, socket: &Path) -> Result<usize, ConnectError> {
        let mut current = self.server.lock();
        let source = current.as_mut().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        // Before anything is stopped: one that is not there costs nobody a pause.
        let mut destination = self.greet_another(socket, false)?;
        let next = destination.socket()?;
        let bases = source.take_back(self.queues.len())?;
        let moved = source.save_state().and_then(|state| {
            destination.load_state(&state)?;
            destination.start(&self.memory, &self.queues, None, &bases)?;
            Ok(state.len())
        });
        match moved {
            Ok(bytes) => {
                *self.moved.lock() = Some(next);
                source.hang_up();
                *source = destination;
                Ok(bytes)
            }
            Err(error) => {
                // First, so that there are never two that serve.
                let _ = destination.take_back(self.queues.len());
                destination.hang_up();
                source.start(&self.memory, &self.queues, None, &bases)?;
                Err(error)
            }
        }
    }

    fn go_on(&self) -> Result<OwnedFd, ConnectError> {
        let mut server = self.greet_another(&self.socket, true)?;
        // Should it fail half way, we hang up, which the server takes for our leave.
        server.start(&self.memory, &self.queues, self.inflight.as_ref(), &[])?;
        let socket = server.socket()?;
        let mut current = self.server.lock();
        // Closed meanwhile: nobody needs it any more.
        if current.is_some() {
            *current = Some(server);
        }
        Ok(socket)
    }

    fn end(&self, why: &str) {
        if !self.has_ended() {
            tracing::error!("the link to the server has ended: {why}");
        }
        self.end_quietly();
    }

    fn end_quietly(&self) {
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        self.queues.iter().for_each(Queue::close);
        let _ = self.end.write(1);
        if let Some(receiver) = self.receiver.get() {
            receiver.ended();
        }
    }
}

/// Sleeps until one of both is ready, or hung up; says which.
fn wait_for(fds: [BorrowedFd<'_>; 2], first: PollFlags) -> [bool; 2] {
    let mut polled =
        [PollFd::from_borrowed_fd(fds[0], first), PollFd::from_borrowed_fd(fds[1], PollFlags::IN)];
    // An interruption by a signal is a look too many, and an error of poll itself must not become a busy loop.
    if let Err(error) = poll(&mut polled, None)
        && error != rustix::io::Errno::INTR
    {
        thread::sleep(Duration::from_millis(1));
    }
    polled.map(|fd| !fd.revents().is_empty())
}

fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor belongs to the event, which is borrowed for as long as the result is.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Threads take queues in turn, each always the same one.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    NUMBER.with(|number| {
        if number.get() == usize::MAX {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}
