//! Who goes on next: chosen by the seed, among all who can.

use std::cell::Cell;
use std::ops::Range;

use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

/// The thread that lets time pass. It is chosen when nobody else can go on, and now and then.
/// It is the first that an execution starts, and so the one with this number.
const CLOCK: usize = 1;
/// One choice in so many lets time pass although others could go on.
const EARLY: u64 = 256;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
    static SEED: Cell<u64> = const { Cell::new(0) };
}

/// Whether the clock was chosen because nobody else could go on.
pub fn alone() -> bool {
    ALONE.get()
}

/// The seed of this execution.
pub fn seed() -> u64 {
    SEED.get()
}

/// Numbers from a seed (xorshift64*, seeded by splitmix64).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Dice((z ^ (z >> 31)) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn once_in(&mut self, times: u64) -> bool {
        times > 0 && self.below(times) == 0
    }
}

/// One execution for each seed.
#[derive(Debug)]
pub struct Seeds {
    seeds: Range<u64>,
    dice: Dice,
    /// Executions of some seeds stay with one thread for longer, which reaches other places.
    stay: u64,
    /// In executions of some seeds a thread is passed over for long, wherever it was: one choice in so many; 0: never.
    starves: u64,
    /// Who is passed over, and for how many choices more.
    starved: Option<(TaskId, u64)>,
}

/// Choices for which a thread is passed over, at most. Others sync from beginning to end in less.
const STARVED_MAX: u64 = 3000;

impl Seeds {
    pub fn new(seeds: Range<u64>) -> Seeds {
        Seeds { seeds, dice: Dice::new(0), stay: 1, starves: 0, starved: None }
    }
}

impl Seeds {
    /// Now and then the one who went on last is passed over from now on.
    fn starve(&mut self, current: Option<TaskId>) {
        match &mut self.starved {
            Some((_, 0)) => self.starved = None,
            Some((_, left)) => *left -= 1,
            None if self.dice.once_in(self.starves) => {
                let choices = 1 + self.dice.below(STARVED_MAX);
                self.starved = current.map(|task| (task, choices));
            }
            None => {}
        }
    }
}

impl Scheduler for Seeds {
    fn new_execution(&mut self) -> Option<Schedule> {
        let seed = self.seeds.next()?;
        self.dice = Dice::new(seed);
        self.stay = [1, 1, 4, 16][self.dice.below(4) as usize];
        self.starves = [0, 40, 200][self.dice.below(3) as usize];
        self.starved = None;
        SEED.set(seed);
        ashore_barrier::start_model(0);
        ashore_barrier::model::time::restart();
        Some(Schedule::new(seed))
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, yields: bool) -> Option<TaskId> {
        ALONE.set(runnable.len() == 1);
        self.starve(current);
        let starved = self.starved.map(|(task, _)| task);
        let is_clock = |task: &Task| usize::from(task.id()) == CLOCK;
        let may_go_on = |task: &&&Task| !is_clock(task) && Some(task.id()) != starved;
        let others = runnable.iter().filter(may_go_on).count() as u64;
        if others == 0 {
            // Whoever was passed over, before time passes.
            self.starved = None;
            return runnable.iter().find(|task| !is_clock(task)).or(runnable.first()).map(|task| task.id());
        }
        if let Some(current) = current
            && !yields
            && self.stay > 1
            && !self.dice.once_in(self.stay)
            && runnable.iter().filter(may_go_on).any(|task| task.id() == current)
        {
            return Some(current);
        }
        let clock = runnable.iter().find(|task| is_clock(task));
        if let Some(clock) = clock.filter(|_| self.dice.once_in(EARLY)) {
            return Some(clock.id());
        }
        let place = self.dice.below(others) as usize;
        runnable.iter().filter(may_go_on).nth(place).map(|task| task.id())
    }

    fn next_u64(&mut self) -> u64 {
        self.dice.next()
    }
}
