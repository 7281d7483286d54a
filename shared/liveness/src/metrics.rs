//! Figures of leases for Prometheus.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use prometheus::{
    HistogramVec, IntCounterVec, exponential_buckets, register_histogram_vec, register_int_counter_vec,
};
use pulp_runtime::registered_metric;

static MARGIN: LazyLock<HistogramVec> = registered_metric!(register_histogram_vec!(
    "pulp_lease_margin_seconds",
    "Time that was left of the trust in a lease when its renewal was answered; near 0 it is about to be lost",
    &["lease"],
    exponential_buckets(0.125, 2.0, 10).unwrap_or_default()
));
static RENEWALS: LazyLock<IntCounterVec> = registered_metric!(register_int_counter_vec!(
    "pulp_lease_renewals_total",
    "Renewals of leases, by how they went: held, failed (tried again), lost",
    &["lease", "outcome"]
));

/// The figures of one lease.
#[derive(Debug)]
pub(crate) struct Figures {
    /// See [`label`].
    lease: String,
}

impl Figures {
    pub(crate) fn of(name: &str) -> Self {
        let lease = label(name).to_owned();
        // From the beginning, so that nothing need be guessed of a figure that isn't there.
        for outcome in ["held", "failed", "lost"] {
            RENEWALS.with_label_values(&[lease.as_str(), outcome]);
        }
        Self { lease }
    }

    /// Renewed when it could be trusted until `until`.
    pub(crate) fn held(&self, until: Instant, now: Instant) {
        let margin: Duration = until.saturating_duration_since(now);
        MARGIN
            .with_label_values(&[self.lease.as_str()])
            .observe(margin.as_secs_f64());
        self.count("held");
    }

    pub(crate) fn failed(&self) {
        self.count("failed");
    }

    pub(crate) fn lost(&self) {
        self.count("lost");
    }

    fn count(&self, outcome: &str) {
        RENEWALS.with_label_values(&[self.lease.as_str(), outcome]).inc();
    }
}

/// The name without host and number, which a monitoring system knows as the instance.
fn label(name: &str) -> &str {
    let role = name.split('@').next().unwrap_or_default();
    match role.rsplit_once('-') {
        Some((role, number)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => role,
        _ => role,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_named_by_its_role_alone() {
        for (name, role) in [
            ("resource-manager", "resource-manager"),
            (
                "reserved_resource_worker-12@host-3.example",
                "reserved_resource_worker",
            ),
            ("reserved_resource_worker@host", "reserved_resource_worker"),
        ] {
            assert_eq!(label(name), role);
        }
    }
}
