//! How errors are shown, on the host and in the guest.

use std::error::Error;
use std::iter;

/// An error and all its sources on one line, outermost first.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for source in iter::successors(error.source(), |error| (*error).source()) {
        let source = source.to_string();
        // Some errors repeat their source in their own text.
        if !text.contains(&source) {
            text.push_str(": ");
            text.push_str(&source);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fmt, io};

    #[derive(Debug)]
    struct Outer(io::Error, &'static str);

    impl fmt::Display for Outer {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str(self.1)
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn every_source_is_named_once() {
        let inner = || io::Error::other("inner");
        assert_eq!(chain(&Outer(inner(), "outer")), "outer: inner");
        assert_eq!(chain(&Outer(inner(), "outer (inner)")), "outer (inner)");
    }
}
