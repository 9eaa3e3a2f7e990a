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
}

impl Seeds {
    pub fn new(seeds: Range<u64>) -> Seeds {
        Seeds { seeds, dice: Dice::new(0), stay: 1 }
    }
}

impl Scheduler for Seeds {
    fn new_execution(&mut self) -> Option<Schedule> {
        let seed = self.seeds.next()?;
        self.dice = Dice::new(seed);
        self.stay = [1, 1, 4, 16][self.dice.below(4) as usize];
        SEED.set(seed);
        ashore_barrier::start_model(0);
        ashore_barrier::model::time::restart();
        Some(Schedule::new(seed))
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, yields: bool) -> Option<TaskId> {
        let is_clock = |task: &&&Task| usize::from(task.id()) == CLOCK;
        ALONE.set(runnable.len() == 1);
        if let Some(current) = current
            && !yields
            && self.stay > 1
            && !self.dice.once_in(self.stay)
            && runnable.iter().any(|task| task.id() == current && !is_clock(&task))
        {
            return Some(current);
        }
        loop {
            let chosen = runnable.get(self.dice.below(runnable.len() as u64) as usize)?;
            if runnable.len() == 1 || !is_clock(&chosen) || self.dice.once_in(EARLY) {
                return Some(chosen.id());
            }
        }
    }

    fn next_u64(&mut self) -> u64 {
        self.dice.next()
    }
}
