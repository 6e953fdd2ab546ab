use super::*;
use serde_json::{Value, json};

fn parse(value: Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

/// What the whole filter says of a system call, by running it.
fn run(seccomp: &LinuxSeccomp, audit: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut program = prefix(seccomp).unwrap();
    program.extend(main_part(seccomp).unwrap());
    let mut data = [number, audit, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    data.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
    let (mut accumulator, mut at) = (0u32, 0usize);
    loop {
        let step = program[at];
        at += 1;
        let jump = |yes: bool| usize::from(if yes { step.jt } else { step.jf });
        match step.code {
            LOAD => {
                let at = step.k as usize;
                accumulator = u32::from_ne_bytes(data[at..at + 4].try_into().unwrap());
            }
            0x05 => at += step.k as usize,
            JUMP_EQUAL => at += jump(accumulator == step.k),
            JUMP_GREATER => at += jump(accumulator > step.k),
            0x35 => at += jump(accumulator >= step.k),
            JUMP_BITS_SET => at += jump(accumulator & step.k != 0),
            0x54 => accumulator &= step.k,
            RETURN => return step.k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

fn like_an_engine(default: &str) -> LinuxSeccomp {
    parse(json!({
        "defaultAction": default,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["read", "openat2", "mseal", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 0x7e02_0000_u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
        ],
    }))
}

#[test]
fn what_is_newer_than_the_profile_looks_unknown() {
    for default in ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"] {
        let seccomp = like_an_engine(default);
        for (audit, bit) in [(AUDIT_ARCH_X86_64, 0), (AUDIT_ARCH_X86_64, X32), (AUDIT_ARCH_I386, 0)] {
            assert_eq!(run(&seccomp, audit, 900 | bit, [0; 6]), ENOSYS);
            assert_eq!(run(&seccomp, audit, 463 | bit, [0; 6]), ENOSYS);
            assert_eq!(run(&seccomp, audit, 462 | bit, [0; 6]), ALLOW, "libseccomp need not know it");
        }
        assert_eq!(run(&seccomp, AUDIT_ARCH_X86_64, 0, [0; 6]), ALLOW);
    }
    let seccomp = like_an_engine("SCMP_ACT_ERRNO");
    assert_eq!(
        run(&seccomp, AUDIT_ARCH_X86_64, 1, [0; 6]),
        EPERM,
        "the profile knows write and does not allow it"
    );
}

#[test]
fn a_profile_that_allows_or_says_so_itself_is_left_alone() {
    let open = parse(json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mseal"], "action": "SCMP_ACT_ERRNO"}],
    }));
    assert_eq!(run(&open, AUDIT_ARCH_X86_64, 900, [0; 6]), ALLOW);
    assert_eq!(run(&open, AUDIT_ARCH_X86_64, 462, [0; 6]), EPERM);
    let bare = parse(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read", "mseal"], "action": "SCMP_ACT_ALLOW"}],
    }));
    assert_eq!(run(&bare, AUDIT_ARCH_X86_64, 900, [0; 6]), EPERM, "as runc without architectures");
    assert_eq!(run(&bare, AUDIT_ARCH_X86_64, 462, [0; 6]), ALLOW);
}

#[test]
fn the_first_value_of_a_masked_comparison_is_the_mask() {
    let seccomp = like_an_engine("SCMP_ACT_ERRNO");
    let clone =
        |flags: i32| run(&seccomp, AUDIT_ARCH_X86_64, libc::SYS_clone as u32, [flags as u64, 0, 0, 0, 0, 0]);
    assert_eq!(clone(libc::SIGCHLD), ALLOW);
    assert_eq!(clone(libc::CLONE_NEWUSER | libc::SIGCHLD), EPERM);
}
