//! The operations as clap's subcommands.

/// Makes the enum `Command` of the operations: for each its variant and type, its name, and what it does.
///
/// It is like clap's derive, but defines the flags of an operation only when it is used. To define the flags of
/// all operations takes longer than some operations do.
macro_rules! operations {
    ($($variant:ident($operation:ty) = $name:literal: $about:literal;)+) => {
        enum Command {
            $($variant($operation)),+
        }

        impl clap::Subcommand for Command {
            fn augment_subcommands(command: clap::Command) -> clap::Command {
                command$(.subcommand(
                    clap::Command::new($name).about($about).defer(|command| {
                        <$operation as clap::Args>::augment_args(command).about($about)
                    }),
                ))+
            }

            fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
                Self::augment_subcommands(command)
            }

            fn has_subcommand(name: &str) -> bool {
                [$($name),+].contains(&name)
            }
        }

        impl clap::FromArgMatches for Command {
            fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
                match matches.subcommand() {
                    $(Some(($name, matches)) => {
                        <$operation as clap::FromArgMatches>::from_arg_matches(matches).map(Command::$variant)
                    })+
                    _ => Err(clap::Error::new(clap::error::ErrorKind::MissingSubcommand)),
                }
            }

            fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }
    };
}
