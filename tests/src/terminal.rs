//! Terminals: a terminal that the test creates for a command, and one that a runtime sends to a
//! `--console-socket`.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::pty::{Winsize, openpty};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::eventually;

/// A Perl program that says its terminal's name and size, each change of the size and what is typed; it ends
/// with status 6 at `end`, with 5 at the end of its input. A shell or a plain read would now and then take the
/// signal just before it waits for input, and only see to it after that: so it waits for input for a tenth of
/// a second at a time.
pub const SIZES: &str = r#"
    $| = 1;
    sub size { print "size ", `stty size` }
    $SIG{WINCH} = \&size;
    system "tty";
    size;
    vec(my $input, fileno(STDIN), 1) = 1;
    for (;;) {
        next unless select(my $ready = $input, undef, undef, 0.1) > 0;
        last unless sysread(STDIN, my $line, 1000);
        print "got <", $line =~ s/\n//r, ">\n";
        exit 6 if $line eq "end\n";
    }
    exit 5"#;

/// The end of a terminal at which a person would sit.
pub struct Terminal {
    master: File,
    screen: Arc<Mutex<Vec<u8>>>,
}

fn winsize(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    fn of(master: File) -> Self {
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, shown) = (master.try_clone().unwrap(), screen.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO is a terminal's way to say that nobody has it open any more.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                shown.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Terminal { master, screen }
    }

    /// Starts a command on a terminal of this size.
    pub fn spawn(mut command: Command, rows: u16, columns: u16) -> (Self, Child) {
        let pair = openpty(Some(&winsize(rows, columns)), None).unwrap();
        let slave = File::from(pair.slave);
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        // SAFETY: both calls may be made between fork and exec, and touch no memory.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        (Self::of(File::from(pair.master)), child)
    }

    /// Types on it.
    pub fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Changes its size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = winsize(rows, columns);
        // SAFETY: the ioctl reads a winsize, which outlives the call.
        let result = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(result, 0, "TIOCSWINSZ");
    }

    /// All that it has shown.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    /// Waits until it has shown `text`.
    #[track_caller]
    pub fn await_text(&self, text: &str) {
        let mut shown = String::new();
        let what = format!("the terminal shows {text:?}");
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(&what, || {
                shown = self.screen();
                shown.contains(text)
            });
        }));
        assert!(found.is_ok(), "{what}; it has {shown:?}");
    }
}

/// The engine's side of a `--console-socket`.
pub struct ConsoleSocket {
    listener: UnixListener,
}

impl ConsoleSocket {
    /// Listens at `path`.
    pub fn bind(path: &Path) -> Self {
        ConsoleSocket { listener: UnixListener::bind(path).unwrap() }
    }

    /// Takes the terminal that the runtime sends.
    pub fn receive(&self) -> Terminal {
        Terminal::of(self.receive_unread())
    }

    /// Takes the terminal that the runtime sends, for a test that reads it itself.
    pub fn receive_unread(&self) -> File {
        let mut stream = None;
        self.listener.set_nonblocking(true).unwrap();
        eventually("a terminal is sent to the console socket", || {
            stream = self.listener.accept().ok().map(|(stream, _)| stream);
            stream.is_some()
        });
        let stream = stream.unwrap();
        stream.set_nonblocking(false).unwrap();
        File::from(receive_descriptor(&stream))
    }
}

fn receive_descriptor(stream: &UnixStream) -> OwnedFd {
    let mut space = nix::cmsg_space!(RawFd);
    let mut name = [0; 4096];
    let mut parts = [IoSliceMut::new(&mut name)];
    let message =
        recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
    for control in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            assert_eq!(descriptors.len(), 1, "one terminal");
            // SAFETY: the kernel has just made the descriptor for us.
            return unsafe { OwnedFd::from_raw_fd(descriptors[0]) };
        }
    }
    panic!("the message at the console socket has no descriptor");
}
