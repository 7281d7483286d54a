//! Who pulls with credentials of their own.

use std::{fmt, str::FromStr};

use crate::{Login, RobotName, name::InvalidName};

/// What a robot's name has before it where people and robots log in alike. No login can have a `+`.
const ROBOT: &str = "robot+";

/// Somebody or something that may be given the right to pull from protected repositories.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Puller {
    /// A user.
    User(Login),
    /// A robot.
    Robot(RobotName),
}

impl fmt::Display for Puller {
    /// As it logs in: `ann`, `robot+ci`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(login) => login.fmt(f),
            Self::Robot(name) => write!(f, "{ROBOT}{name}"),
        }
    }
}

impl FromStr for Puller {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text.strip_prefix(ROBOT) {
            Some(name) => name.parse().map(Self::Robot),
            None => text.parse().map(Self::User),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_robot_is_never_taken_for_a_user() {
        for text in ["ann", "a@example.org", "robot", "robot+ci", "robot+a.b-c_d"] {
            let puller: Puller = text.parse().unwrap();
            assert_eq!(puller.to_string(), text);
            assert_eq!(matches!(puller, Puller::Robot(_)), text.contains('+'), "{text}");
        }
        for text in ["", "robot+", "robot+a+b", "robot+a@b", "ann+b", "a b"] {
            assert!(text.parse::<Puller>().is_err(), "{text}");
        }
    }
}
