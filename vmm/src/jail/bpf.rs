//! Seccomp programs that look a system call up in a tree.
//!
//! The kernel runs a program once for each number of a system call when it is put on a thread
//! (kernel/seccomp.c, `seccomp_cache_prepare`): with a comparison for each call that is allowed, four
//! filters would take 1.5 ms of a VM's start.

use std::mem::offset_of;

use libc::{
    BPF_ABS, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_KILL_PROCESS, c_long, seccomp_data,
};
use seccompiler::{BpfProgram, sock_filter};

/// `AUDIT_ARCH_X86_64` of linux/audit.h, which the libc crate lacks: `EM_X86_64`, 64 bits, little-endian.
const AUDIT_ARCH_X86_64: u32 = 62 | 0x8000_0000 | 0x4000_0000;

/// A program that allows the x86-64 system calls of these numbers; any other ends the process.
pub fn allow(mut calls: Vec<c_long>) -> BpfProgram {
    calls.sort_unstable();
    calls.dedup();
    // Where what is allowed begins and ends: the verdict changes at each of these numbers.
    let mut changes: Vec<u32> = Vec::new();
    for call in calls.into_iter().filter_map(|call| u32::try_from(call).ok()) {
        if changes.last() == Some(&call) {
            changes.pop();
        } else {
            changes.push(call);
        }
        changes.push(call + 1);
    }
    let mut program = vec![
        load(offset_of!(seccomp_data, arch)),
        jump(BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0),
        verdict(false),
        // Numbers of the x32 ABI lie above all others.
        load(offset_of!(seccomp_data, nr)),
    ];
    search(&mut program, &changes, false);
    program
}

/// Appends the search among these changes; `allowed` is the verdict below the first of them.
fn search(program: &mut BpfProgram, changes: &[u32], allowed: bool) {
    let (below, [change, above @ ..]) = changes.split_at(changes.len() / 2) else {
        return program.push(verdict(allowed));
    };
    // A conditional jump reaches 255 instructions far, the other kind anywhere.
    program.push(jump(BPF_JGE, *change, 0, 1));
    let place = program.len();
    program.push(instruction(BPF_JMP | BPF_JA, 0, 0, 0));
    search(program, below, allowed);
    program[place].k = (program.len() - place - 1) as u32;
    search(program, above, allowed == (below.len() % 2 == 1));
}

fn load(offset: usize) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, offset as u32, 0, 0)
}

fn jump(comparison: u32, value: u32, jt: u8, jf: u8) -> sock_filter {
    instruction(BPF_JMP | comparison | BPF_K, value, jt, jf)
}

fn verdict(allowed: bool) -> sock_filter {
    let value = if allowed { SECCOMP_RET_ALLOW } else { SECCOMP_RET_KILL_PROCESS };
    instruction(BPF_RET | BPF_K, value, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program says of a call: the kernel's interpreter for the instructions that it has.
    fn run(program: &BpfProgram, arch: u32, call: u32) -> u32 {
        let (mut place, mut value) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[place];
            place += 1;
            let skipped = match u32::from(code) {
                c if c == BPF_JMP | BPF_JA => k,
                c if c == BPF_LD | BPF_W | BPF_ABS => {
                    value = if k == offset_of!(seccomp_data, arch) as u32 { arch } else { call };
                    0
                }
                c if c == BPF_JMP | BPF_JEQ | BPF_K => u32::from(if value == k { jt } else { jf }),
                c if c == BPF_JMP | BPF_JGE | BPF_K => u32::from(if value >= k { jt } else { jf }),
                _ => return k,
            };
            place += skipped as usize;
        }
    }

    fn allowed(calls: &[c_long]) {
        let program = allow(calls.to_vec());
        for call in (0..1000).chain([0x3fff_ffff, 0x4000_0000, 0x4000_0001, u32::MAX]) {
            let expected = calls.contains(&c_long::from(call));
            let verdict = run(&program, AUDIT_ARCH_X86_64, call);
            assert_eq!(verdict == SECCOMP_RET_ALLOW, expected, "call {call} of {calls:?}");
            assert!(expected || verdict == SECCOMP_RET_KILL_PROCESS);
            assert_eq!(run(&program, 0x4000_0003, call), SECCOMP_RET_KILL_PROCESS, "another machine");
        }
    }

    #[test]
    fn what_is_listed_is_allowed_and_nothing_else() {
        allowed(&[]);
        allowed(&[0]);
        allowed(&[7, 3, 4, 5, 3, 999]);
        allowed(&(0..460).collect::<Vec<_>>());
        // No list has more changes than one of all even numbers.
        allowed(&(0..460).filter(|call| call % 2 == 0).collect::<Vec<_>>());
    }
}
