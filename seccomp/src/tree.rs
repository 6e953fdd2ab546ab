//! A program that finds the verdict on a call in a few steps, by a search tree over the calls' numbers.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// What is done with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is allowed.
    Allow,
    /// It fails with this error number.
    Fail(u16),
    /// The program that follows judges its arguments.
    Judge,
    /// It ends the process.
    Kill,
}

// linux/bpf_common.h and linux/seccomp.h.
const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
/// `AUDIT_ARCH_X86_64` (linux/audit.h): EM_X86_64, 64 bits, little endian.
const ARCH_X86_64: u32 = 62 | 0x8000_0000 | 0x4000_0000;
/// Where `struct seccomp_data` has the number and the architecture of the call.
const NUMBER_OFFSET: u32 = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
const ARCH_OFFSET: u32 = std::mem::offset_of!(libc::seccomp_data, arch) as u32;

/// A filter with these verdicts on calls of x86-64, and `other` on all others. `judge` has the verdict on those that
/// are to be judged.
pub(crate) fn program(verdicts: &BTreeMap<u32, Verdict>, other: Verdict, judge: BpfProgram) -> BpfProgram {
    let mut program = vec![
        step(LOAD_WORD, ARCH_OFFSET),
        sock_filter { code: JUMP_IF_EQUAL, jt: 1, jf: 0, k: ARCH_X86_64 },
        leaf(Verdict::Kill),
        step(LOAD_WORD, NUMBER_OFFSET),
    ];
    add_tree(&mut program, &ranges(verdicts, other));
    let end = program.len();
    for (index, instruction) in program.iter_mut().enumerate() {
        if instruction.code == JUMP && instruction.k == TO_JUDGE {
            instruction.k = (end - index - 1) as u32;
        }
    }
    program.extend(judge);
    program
}

/// Where a jump goes while the length of the tree is not known.
const TO_JUDGE: u32 = u32::MAX;

/// The verdicts, each from the first number that it is on, ascending from 0.
fn ranges(verdicts: &BTreeMap<u32, Verdict>, other: Verdict) -> Vec<(u32, Verdict)> {
    let mut ranges = vec![(0, other)];
    for (number, verdict) in verdicts {
        ranges.push((*number, *verdict));
        ranges.push((number + 1, other));
    }
    // Of two that begin at one number, the later one holds.
    ranges.reverse();
    ranges.dedup_by_key(|range| range.0);
    ranges.reverse();
    ranges.dedup_by_key(|range| range.1);
    ranges
}

/// Adds what leads from a number, which is loaded, to the verdict of the last range that begins at it or before.
fn add_tree(program: &mut BpfProgram, ranges: &[(u32, Verdict)]) {
    if let [(_, verdict)] = ranges {
        program.push(leaf(*verdict));
        return;
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    program.push(sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: high[0].0 });
    // Conditional jumps reach 255 instructions; this one reaches everywhere.
    let jump = program.len();
    program.push(step(JUMP, 0));
    add_tree(program, low);
    program[jump].k = (program.len() - jump - 1) as u32;
    add_tree(program, high);
}

fn leaf(verdict: Verdict) -> sock_filter {
    match verdict {
        Verdict::Allow => step(RETURN, libc::SECCOMP_RET_ALLOW),
        Verdict::Fail(error) => step(RETURN, libc::SECCOMP_RET_ERRNO | u32::from(error)),
        Verdict::Judge => step(JUMP, TO_JUDGE),
        Verdict::Kill => step(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
    }
}

fn step(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with the program; returns the verdict and the number of steps.
    fn run(program: &[sock_filter], arch: u32, number: u32) -> (u32, usize) {
        let (mut at, mut loaded) = (0, 0);
        for steps in 1.. {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            match code {
                LOAD_WORD if k == NUMBER_OFFSET => loaded = number,
                LOAD_WORD => loaded = arch,
                JUMP => at += k as usize,
                JUMP_IF_EQUAL => at += usize::from(if loaded == k { jt } else { jf }),
                JUMP_IF_AT_LEAST => at += usize::from(if loaded >= k { jt } else { jf }),
                RETURN => return (k, steps),
                other => panic!("instruction {other:#x}"),
            }
        }
        unreachable!()
    }

    #[test]
    fn each_number_has_its_verdict() {
        const JUDGED: u32 = libc::SECCOMP_RET_LOG;
        // Neighbours, gaps, and more than a conditional jump reaches across.
        let mut verdicts: BTreeMap<u32, Verdict> = (0..400).step_by(3).map(|n| (n, Verdict::Allow)).collect();
        verdicts.extend([
            (1, Verdict::Judge),
            (4, Verdict::Fail(38)),
            (399, Verdict::Judge),
            (435, Verdict::Fail(1)),
        ]);
        for other in [Verdict::Kill, Verdict::Fail(13)] {
            let program = program(&verdicts, other, vec![step(RETURN, JUDGED)]);
            for number in (0..600).chain([0x4000_0000, 0x4000_0003, u32::MAX]) {
                let expected = match verdicts.get(&number).unwrap_or(&other) {
                    Verdict::Allow => libc::SECCOMP_RET_ALLOW,
                    Verdict::Fail(error) => libc::SECCOMP_RET_ERRNO | u32::from(*error),
                    Verdict::Judge => JUDGED,
                    Verdict::Kill => libc::SECCOMP_RET_KILL_PROCESS,
                };
                let (verdict, steps) = run(&program, ARCH_X86_64, number);
                assert_eq!(verdict, expected, "{number}");
                assert!(steps <= 4 + 2 * 10, "{number}: {steps} steps");
                // Another architecture has other numbers.
                assert_eq!(run(&program, 0x4000_0003, number).0, libc::SECCOMP_RET_KILL_PROCESS);
            }
        }
    }

    #[test]
    fn without_calls_all_are_refused() {
        let program = program(&BTreeMap::new(), Verdict::Kill, Vec::new());
        assert_eq!(run(&program, ARCH_X86_64, 0).0, libc::SECCOMP_RET_KILL_PROCESS);
    }
}
