//! Claims a grant, runs the task kind, commits its effect.
