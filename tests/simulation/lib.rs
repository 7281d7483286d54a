//! The tasking core, simulated: resource managers, workers, relays, database and broker in one thread, over a virtual
//! clock and a network that loses, doubles and reorders, thousands of seeded runs in seconds.
//!
//! Everything is in the test target, so that no build but that of the tests knows the switches that break things:
//!
//! ```sh
//! cargo test -p pulp-simulation                                  # 3,000 seeds, and the mutations
//! PULP_SIMULATION_SEEDS=100000 cargo test -p pulp-simulation     # a soak
//! PULP_SIMULATION_SEED=4711 cargo test -p pulp-simulation        # one seed again, with its time line
//! ```
//!
//! What runs for real: the leader's decisions with the lock table ([`pulp_resource_manager::leader`]), the trust in a
//! lease ([`pulp_liveness::Trust`]), the worker's slots, its list of runs and its decisions at a run's end. The database
//! is a ledger in memory; one contract suite holds it to what the SQL store does.
//!
//! [`pulp_resource_manager::leader`]: ../pulp_resource_manager/leader/index.html
//! [`pulp_liveness::Trust`]: ../pulp_liveness/struct.Trust.html
