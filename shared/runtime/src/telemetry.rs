//! Logging to standard error, where systemd and container engines pick it up.

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    config::{LogConfig, LogFormat},
    json_log::Flat,
};

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `log.level` is no filter.
    #[error(
        "log.level {level:?} is not valid ({reason}); give a level like info, or a filter like info,pulp_worker=debug"
    )]
    Level {
        /// The text given.
        level: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A logger is set already in this process.
    #[error("logging is set up already: {0}")]
    Twice(String),
}

/// Reads `log.level`: a level (`info`) or directives (`info,pulp_worker=debug`).
pub(crate) fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    let wrong = |reason: String| TelemetryError::Level {
        level: level.to_owned(),
        reason,
    };
    if level.trim().is_empty() {
        return Err(wrong("it is empty".to_owned()));
    }
    // A bare word that is no level is taken for a module's name and would silence everything.
    let is_level = |word: &str| word.parse::<tracing::level_filters::LevelFilter>().is_ok();
    for directive in level.split(',').map(str::trim) {
        if !directive.contains(['=', '[', ':']) && !is_level(directive) {
            return Err(wrong(format!(
                "{directive:?} is not one of off, error, warn, info, debug, trace"
            )));
        }
    }
    EnvFilter::builder()
        .parse(level)
        .map_err(|e| wrong(e.to_string()))
}

/// Sends the process's log to standard error. Called once, first thing in `main` after the configuration is read.
pub fn init(config: &LogConfig) -> Result<(), TelemetryError> {
    let registry = tracing_subscriber::registry().with(filter(&config.level)?);
    let done = match config.format {
        LogFormat::Text => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            registry
                .with(fmt::layer().with_writer(std::io::stderr).with_ansi(ansi))
                .try_init()
        }
        LogFormat::Json => registry
            .with(
                fmt::layer()
                    .fmt_fields(fmt::format::JsonFields::new())
                    .event_format(Flat)
                    .with_writer(std::io::stderr),
            )
            .try_init(),
    };
    done.map_err(|e| TelemetryError::Twice(e.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_level_is_a_word_or_directives_and_a_typo_is_told() {
        for good in ["info", "WARN", "info,pulp_worker=debug", "off"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "inof", "info,pulp_worker=loud"] {
            assert!(
                filter(bad).unwrap_err().to_string().contains("log.level"),
                "{bad}"
            );
        }
    }
}
