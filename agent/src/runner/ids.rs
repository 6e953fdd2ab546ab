//! Writes the ID mappings of a user namespace.
//!
//! libcontainer itself writes only a single range. For several it executes `newuidmap` and `newgidmap`, which
//! a host provides for users without the right to write mappings. The guest has no such programs, so the
//! agent's binary replaces both.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

/// What libcontainer looks for, and the file that is to be written.
const PROGRAMS: [(&str, &str); 2] = [("newuidmap", "uid_map"), ("newgidmap", "gid_map")];

/// Makes libcontainer find the programs in `directory`.
pub fn provide(directory: &Path) -> io::Result<()> {
    let program = fs::read_link("/proc/self/exe")?;
    for (name, _) in PROGRAMS {
        symlink(&program, directory.join(name))?;
    }
    // SAFETY: a runner has one thread.
    unsafe { std::env::set_var("PATH", directory) };
    Ok(())
}

/// Whether this process was started as one of the programs: the file that it is to write.
pub fn role(name: &OsStr) -> Option<&'static str> {
    let name = Path::new(name).file_name()?;
    PROGRAMS.iter().find(|(program, _)| name == *program).map(|(_, file)| *file)
}

/// `newuidmap PID INSIDE OUTSIDE COUNT …`
pub fn main(file: &str, args: impl Iterator<Item = OsString>) -> i32 {
    let args: Vec<String> = args.filter_map(|arg| arg.into_string().ok()).collect();
    let Some((pid, ranges)) = args.split_first() else { return 2 };
    match fs::write(format!("/proc/{pid}/{file}"), lines(ranges)) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{file}: {error}");
            1
        }
    }
}

/// The kernel takes the whole table in one write (user_namespaces(7)).
fn lines(ranges: &[String]) -> String {
    ranges.chunks(3).map(|range| range.join(" ") + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_for_each_range() {
        let ranges = ["0", "100000", "1000", "1000", "1000", "1"].map(str::to_owned);
        assert_eq!(lines(&ranges), "0 100000 1000\n1000 1000 1\n");
        assert_eq!(role(OsStr::new("/run/x/newgidmap")), Some("gid_map"));
        assert_eq!(role(OsStr::new("/init")), None);
        assert_eq!(main("uid_map", ["999999999".into(), "0".into()].into_iter()), 1);
    }
}
