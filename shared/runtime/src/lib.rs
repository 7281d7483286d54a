//! Configuration, logging, shutdown: what every role's process needs.

pub mod backoff;
pub mod config;
pub mod export;
mod json_log;
pub mod shutdown;
pub mod telemetry;

pub use backoff::Backoff;
pub use config::Config;
pub use shutdown::Shutdown;

/// A Prometheus metric in a `static`, registered with the process's registry when it is first used.
///
/// Takes one of the `prometheus::register_…!` macros' result. A registration fails only for a name that is taken, which
/// is a bug that the first run of any test shows.
#[macro_export]
macro_rules! registered_metric {
    ($made:expr) => {
        ::std::sync::LazyLock::new(|| match $made {
            Ok(metric) => metric,
            Err(e) => unreachable!("a metric can't be registered: {e}"),
        })
    };
}
