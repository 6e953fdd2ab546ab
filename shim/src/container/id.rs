//! Container IDs.

use std::fmt;
use std::str::FromStr;

/// A valid directory name, without separators or leading dots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerId(String);

/// An invalid container ID.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// It is empty.
    #[error("the container id is empty")]
    Empty,
    /// It is too long.
    #[error("the container id has {0} characters; the maximum is {max}", max = MAX_NAME)]
    TooLong(usize),
    /// A character is not allowed.
    #[error("the container id {0:?} has characters other than letters, digits and _ + - .")]
    Characters(String),
    /// It would name another directory.
    #[error("the container id {0:?} starts with a dot, or contains ..")]
    Dots(String),
}

/// A file name has at most 255 bytes (NAME_MAX).
const MAX_NAME: usize = 255;

impl FromStr for ContainerId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
        if text.is_empty() {
            Err(IdError::Empty)
        } else if text.len() > MAX_NAME {
            Err(IdError::TooLong(text.chars().count()))
        } else if !text.chars().all(allowed) {
            Err(IdError::Characters(text.to_owned()))
        } else if text.starts_with('.') || text.contains("..") {
            Err(IdError::Dots(text.to_owned()))
        } else {
            Ok(ContainerId(text.to_owned()))
        }
    }
}

impl ContainerId {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_engines_give_are_taken() {
        for id in ["a", "c0ffee", "with-dash_and.dot+plus", &"f".repeat(64)] {
            assert_eq!(id.parse::<ContainerId>().unwrap().as_str(), id);
        }
    }

    #[test]
    fn names_that_reach_elsewhere_are_refused() {
        assert_eq!("".parse::<ContainerId>(), Err(IdError::Empty));
        assert_eq!("a".repeat(1100).parse::<ContainerId>(), Err(IdError::TooLong(1100)));
        for id in ["a/b", "a b", "ä", "a\0", "-\n"] {
            assert!(matches!(id.parse::<ContainerId>(), Err(IdError::Characters(_))), "{id:?}");
        }
        for id in [".", "..", "...", "a..b", ".hidden"] {
            assert!(matches!(id.parse::<ContainerId>(), Err(IdError::Dots(_))), "{id:?}");
        }
    }
}
