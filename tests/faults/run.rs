//! What one run has seen so far, shared by those who break, those who load and those who look.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Events, counts, and what must not be.
pub(crate) struct Run {
    begun: Instant,
    line: Mutex<Vec<String>>,
    violations: Mutex<Vec<String>>,
    counts: Mutex<BTreeMap<String, usize>>,
    /// Tasks that the API has promised, by the microsecond since 1970 at which its promise was here.
    pub(crate) accepted: Mutex<HashMap<String, i64>>,
    /// Tasks without an end when last looked.
    pub(crate) open: AtomicUsize,
    /// How often the tables were looked at.
    pub(crate) looks: AtomicUsize,
    /// The processes of now, by their names among the nodes.
    pub(crate) processes: Mutex<Vec<(String, u32)>>,
    over: AtomicBool,
    loud: bool,
}

impl Run {
    pub(crate) fn new(loud: bool) -> Self {
        Self {
            begun: Instant::now(),
            line: Mutex::default(),
            violations: Mutex::default(),
            counts: Mutex::default(),
            accepted: Mutex::default(),
            open: AtomicUsize::new(0),
            looks: AtomicUsize::new(0),
            processes: Mutex::default(),
            over: AtomicBool::new(false),
            loud,
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Adds a line to the time line.
    pub(crate) fn note(&self, what: &str) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let of_day = at.as_secs() % 86_400;
        let line = format!(
            "{:8.2} s ({:02}:{:02}:{:02} UTC)  {what}",
            self.elapsed().as_secs_f64(),
            of_day / 3600,
            of_day / 60 % 60,
            of_day % 60
        );
        if self.loud {
            println!("{line}");
        }
        self.line.lock().unwrap().push(line);
    }

    pub(crate) fn count(&self, what: &str) {
        *self.counts.lock().unwrap().entry(what.to_owned()).or_default() += 1;
    }

    /// Something is as it must never be. The run ends early: what follows says less.
    pub(crate) fn violated(&self, what: &str) {
        self.note(&format!("VIOLATION: {what}"));
        self.violations.lock().unwrap().push(what.to_owned());
        self.end();
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    pub(crate) fn counts(&self) -> BTreeMap<String, usize> {
        self.counts.lock().unwrap().clone()
    }

    pub(crate) fn time_line(&self) -> String {
        self.line.lock().unwrap().join("\n")
    }

    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Lets time pass, unless the run is over.
    pub(crate) fn pause(&self, millis: u64) {
        let until = Instant::now() + Duration::from_millis(millis);
        while !self.is_over() && Instant::now() < until {
            pause(
                until
                    .saturating_duration_since(Instant::now())
                    .min(Duration::from_millis(50)),
            );
        }
    }
}

/// Faults are made of time: a process is frozen for so long, an engine away for so long. And what tells nobody that it
/// has changed is looked at again after a pause, until the run is over or its limit is reached.
#[allow(clippy::disallowed_methods)]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}
