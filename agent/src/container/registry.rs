//! The containers of the guest, by their ids.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Container, LookupError};
use crate::error::RequestError;

/// The longest id that the protocol allows.
const ID_MAX: usize = 1024;
/// How many containers one guest may hold.
pub const CONTAINERS_MAX: usize = 1024;

/// Checks a container's or process's id; `field` is its name in the request.
pub fn check_id(field: &str, id: &str) -> Result<(), RequestError> {
    if id.is_empty() || id.len() > ID_MAX {
        return Err(RequestError::new(
            field,
            format!("must have 1 to {ID_MAX} characters, not {}", id.len()),
        ));
    }
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if !id.bytes().all(good) || !id.as_bytes()[0].is_ascii_alphanumeric() {
        let reason = "must be letters, digits and _ + - . only, starting with a letter or digit";
        return Err(RequestError::new(field, reason));
    }
    Ok(())
}

/// The containers of the guest.
#[derive(Default)]
pub struct Containers(Mutex<HashMap<String, Slot>>);

enum Slot {
    /// Its id is taken while it is being made.
    Reserved,
    Ready(Arc<Container>),
}

/// An id that is taken; freed again when this is dropped.
pub(super) struct Reservation<'a> {
    containers: &'a Containers,
    id: String,
    done: bool,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.containers.lock().remove(&self.id);
        }
    }
}

impl Reservation<'_> {
    /// Gives the id its container.
    pub(super) fn fill(mut self, container: Arc<Container>) {
        self.containers.lock().insert(self.id.clone(), Slot::Ready(container));
        self.done = true;
    }
}

impl Containers {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes an id for a container that is about to be made.
    pub(super) fn reserve(&self, id: &str) -> Result<Reservation<'_>, LookupError> {
        let mut containers = self.lock();
        if containers.contains_key(id) {
            return Err(LookupError::ContainerExists(id.to_owned()));
        }
        if containers.len() >= CONTAINERS_MAX {
            return Err(LookupError::TooMany);
        }
        containers.insert(id.to_owned(), Slot::Reserved);
        Ok(Reservation { containers: self, id: id.to_owned(), done: false })
    }

    /// The container with `id`.
    pub fn get(&self, id: &str) -> Result<Arc<Container>, LookupError> {
        check_id("container_id", id)?;
        match self.lock().get(id) {
            Some(Slot::Ready(container)) => Ok(container.clone()),
            _ => Err(LookupError::NoContainer(id.to_owned())),
        }
    }

    /// Forgets a container.
    pub(super) fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    /// Every container that is ready.
    pub fn all(&self) -> Vec<Arc<Container>> {
        self.lock()
            .values()
            .filter_map(|slot| match slot {
                Slot::Ready(container) => Some(container.clone()),
                Slot::Reserved => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked() {
        for good in ["a", "0", "a_b+c-d.e", &"x".repeat(1024)] {
            assert!(check_id("container_id", good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", "a/b", "ä", "a b", "a\0", &"x".repeat(1025)] {
            let error = check_id("exec_id", bad).unwrap_err().to_string();
            assert!(error.starts_with("exec_id: "), "{bad}");
        }
    }

    #[test]
    fn an_id_is_free_again_when_its_making_fails() {
        let containers = Containers::default();
        let reservation = containers.reserve("a").unwrap();
        assert!(matches!(containers.reserve("a"), Err(LookupError::ContainerExists(_))));
        assert!(matches!(containers.get("a"), Err(LookupError::NoContainer(_))));
        drop(reservation);
        assert!(containers.reserve("a").is_ok());
    }
}
