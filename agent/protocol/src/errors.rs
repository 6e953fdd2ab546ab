//! How errors are sent from the agent to the host.

use protobuf::{EnumOrUnknown, Message};
use ttrpc::proto::{Any, Status};

use crate::agent::CommandError;
use crate::agent::command_error::Kind;

/// What the details of a status say that they hold.
const COMMAND_ERROR: &str = "type.googleapis.com/pouch.agent.v1.CommandError";

/// The status, with why the command cannot be executed.
pub fn with_command_error(mut status: Status, kind: Kind) -> Status {
    let error = CommandError { kind: EnumOrUnknown::new(kind), ..Default::default() };
    // A message in memory can always be written.
    let value = error.write_to_bytes().unwrap_or_default();
    status.details.push(Any { type_url: COMMAND_ERROR.to_owned(), value, ..Default::default() });
    status
}

/// Why the command cannot be executed, if the status says so.
pub fn command_error(status: &Status) -> Option<Kind> {
    let details = status.details.iter().find(|details| details.type_url == COMMAND_ERROR)?;
    let kind = CommandError::parse_from_bytes(&details.value).ok()?.kind.enum_value().ok()?;
    (kind != Kind::UNKNOWN).then_some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ttrpc::proto::Code;

    #[test]
    fn a_status_carries_its_kind() {
        let status = ttrpc::get_status(Code::NOT_FOUND, "why");
        assert_eq!(command_error(&status), None);
        for kind in [Kind::NOT_FOUND, Kind::NOT_EXECUTABLE] {
            assert_eq!(command_error(&with_command_error(status.clone(), kind)), Some(kind));
        }
        assert_eq!(command_error(&with_command_error(status.clone(), Kind::UNKNOWN)), None);
        let mut nonsense = with_command_error(status, Kind::NOT_FOUND);
        nonsense.details[0].value = vec![0xff; 9];
        assert_eq!(command_error(&nonsense), None);
    }
}
