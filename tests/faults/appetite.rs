//! Open files and memory of every process over the run: flat, or something leaks.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::run::Run;

/// How often each process is looked at.
const EVERY: Duration = Duration::from_secs(2);

/// Only who lived this long is judged; what is younger still warms up.
const JUDGED_FROM: Duration = Duration::from_mins(4);

/// What the last quarter of a life may hold beyond the second one. Far above what caches and a busy moment make of it,
/// far below what a leak makes of a long run.
const MORE_FILES: f64 = 25.0;
const MORE_MEGABYTES: f64 = 40.0;

/// What any process may hold at any time.
const MOST_FILES: f64 = 300.0;
const MOST_MEGABYTES: f64 = 500.0;

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    files: f64,
    megabytes: f64,
}

/// Samples of each life: a node's name and the number of its process.
#[derive(Default)]
pub(crate) struct Appetite(BTreeMap<(String, u32), Vec<Sample>>);

impl Appetite {
    /// Looks until `over` says so.
    pub(crate) fn watch(&mut self, run: &Run, over: &dyn Fn() -> bool) {
        while !over() {
            let processes = run.processes.lock().unwrap().clone();
            for (node, pid) in processes {
                // A process that is gone has no appetite.
                if let Some((files, megabytes)) = sample(pid) {
                    let at = Instant::now();
                    self.0
                        .entry((node, pid))
                        .or_default()
                        .push(Sample { at, files, megabytes });
                }
            }
            crate::run::pause(EVERY);
        }
    }

    /// What is wrong with it; tells the run how each long life went.
    pub(crate) fn judge(&self, run: &Run) {
        for ((node, pid), samples) in &self.0 {
            let most = |of: fn(&Sample) -> f64| samples.iter().map(of).fold(0.0, f64::max);
            let (files, megabytes) = (most(|s| s.files), most(|s| s.megabytes));
            if files > MOST_FILES || megabytes > MOST_MEGABYTES {
                run.violated(&format!("{node} had {files} open files and {megabytes:.0} MiB"));
            }
            let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
                continue;
            };
            let life = last.at - first.at;
            if life < JUDGED_FROM {
                continue;
            }
            let files = Trend::of(samples, |s| s.files);
            let megabytes = Trend::of(samples, |s| s.megabytes);
            run.note(&format!(
                "{node} ({pid}) over {:.0} s: open files {files}; MiB {megabytes}",
                life.as_secs_f64()
            ));
            if files.grown() > MORE_FILES || megabytes.grown() > MORE_MEGABYTES {
                run.violated(&format!("{node} leaks: open files {files}; MiB {megabytes}"));
            }
        }
    }
}

/// How a figure went over a life.
struct Trend {
    /// Medians of the second and of the last quarter.
    second: f64,
    last: f64,
    /// Of the straight line closest to the second half, per hour.
    slope: f64,
}

impl Trend {
    fn of(samples: &[Sample], figure: fn(&Sample) -> f64) -> Self {
        let quarter = samples.len() / 4;
        let median = |part: &[Sample]| {
            let mut figures: Vec<f64> = part.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures.get(figures.len() / 2).copied().unwrap_or_default()
        };
        let half = &samples[2 * quarter..];
        let points: Vec<(f64, f64)> = half
            .iter()
            .map(|s| ((s.at - half[0].at).as_secs_f64() / 3600.0, figure(s)))
            .collect();
        Self {
            second: median(&samples[quarter..2 * quarter]),
            last: median(&samples[3 * quarter..]),
            slope: slope(&points),
        }
    }

    fn grown(&self) -> f64 {
        self.last - self.second
    }
}

impl std::fmt::Display for Trend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.0}, then {:.0} ({:+.0} an hour)",
            self.second, self.last, self.slope
        )
    }
}

/// Of the straight line with the least squares.
#[allow(clippy::cast_precision_loss)]
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let over: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let under: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    if under > 0.0 { over / under } else { 0.0 }
}

/// Open files and resident MiB.
#[allow(clippy::cast_precision_loss)]
fn sample(pid: u32) -> Option<(f64, f64)> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some((files as f64, kilobytes / 1024.0))
}

#[test]
fn a_leak_is_told_from_a_process_that_warms_up() {
    let begun = Instant::now();
    let life = |megabytes: fn(u32) -> f64| {
        let at = |n: u32| begun + EVERY * n;
        let samples = (0..300).map(|n| Sample {
            at: at(n),
            files: 30.0,
            megabytes: megabytes(n),
        });
        Appetite(BTreeMap::from([(("worker-0".to_owned(), 1), samples.collect())]))
    };
    let violations = |life: Appetite| {
        let run = Run::new(false);
        life.judge(&run);
        run.violations()
    };
    let warm = life(|n| 50.0 + 100.0 * f64::from(n.min(50)) / 50.0);
    assert_eq!(violations(warm), Vec::<String>::new());
    let leaks = violations(life(|n| 50.0 + 0.5 * f64::from(n)));
    assert!(leaks.len() == 1 && leaks[0].contains("leaks"), "{leaks:?}");
}
