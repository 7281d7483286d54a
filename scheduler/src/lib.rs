//! Fires schedules and the periodic duties.
