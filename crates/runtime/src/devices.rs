//! Which devices a container may open: rules, written to cgroup v1's controller or attached as a program to cgroup v2.
//!
//! D1  First everything is denied, then the rules allow. If they cannot be applied, the container does not start.
//! D2  The runtime library applies rules of its own besides (it allows tun devices) or none at all (v2): ours are applied after it
//!     has set the group up and before the container's program is executed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cgroup::Cgroup;
use crate::sys;

/// Rules in one list at most: a BPF program of old kernels holds 4096 instructions.
const RULES_MAX: usize = 500;

/// One rule of the device list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    allow: bool,
    /// `a`, `b` or `c`.
    kind: char,
    major: Option<u32>,
    minor: Option<u32>,
    read: bool,
    write: bool,
    make: bool,
}

/// Docker's list: nothing but the harmless devices, and the right to make any node (opening it is another matter).
pub(crate) fn default_rules() -> Vec<Rule> {
    let any = |kind: char| Rule { allow: true, kind, major: None, minor: None, read: false, write: false, make: true };
    let mut rules = vec![Rule::deny_all(), any('c'), any('b')];
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(Rule::allow('c', major, minor, "rwm"));
    }
    rules.push(Rule { minor: None, ..Rule::allow('c', 136, 0, "rwm") });
    rules
}

impl Rule {
    pub(crate) fn allow_all() -> Self {
        Self { allow: true, kind: 'a', major: None, minor: None, read: true, write: true, make: true }
    }

    fn deny_all() -> Self {
        Self { allow: false, ..Self::allow_all() }
    }

    pub(crate) fn allow(kind: char, major: u32, minor: u32, access: &str) -> Self {
        let has = |letter| access.contains(letter);
        Self {
            allow: true,
            kind,
            major: Some(major),
            minor: Some(minor),
            read: has('r'),
            write: has('w'),
            make: has('m'),
        }
    }

    /// Docker's text: `c 42:* rmw`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (kind, numbers, access) = (words.next()?, words.next()?, words.next()?);
        let kind = ["a", "b", "c"].contains(&kind).then(|| kind.chars().next())??;
        let number = |text: &str| if text == "*" { Some(None) } else { text.parse::<u32>().ok().map(Some) };
        let (major, minor) = numbers.split_once(':')?;
        let known = !access.is_empty() && access.len() <= 3 && access.bytes().all(|byte| b"rwm".contains(&byte));
        if words.next().is_some() || !known {
            return None;
        }
        Some(Self { major: number(major)?, minor: number(minor)?, ..Self::allow(kind, 0, 0, access) })
    }

    fn access(&self) -> String {
        [(self.read, 'r'), (self.write, 'w'), (self.make, 'm')]
            .iter()
            .filter(|(has, _)| *has)
            .map(|(_, letter)| letter)
            .collect()
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut rule = json!({ "allow": self.allow, "type": self.kind.to_string(), "access": self.access() });
        if let Some(major) = self.major {
            rule["major"] = json!(major);
        }
        if let Some(minor) = self.minor {
            rule["minor"] = json!(minor);
        }
        rule
    }

    /// The line for cgroup v1.
    fn line(&self) -> String {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        format!("{} {}:{} {}", self.kind, number(self.major), number(self.minor), self.access())
    }
}

/// Puts the rules in force for a group that the runtime library has set up.
pub(crate) fn apply(rules: &[Rule], group: &Cgroup, unified: bool) -> Result<(), (PathBuf, io::Error)> {
    if unified {
        let dir =
            group.dirs().first().ok_or_else(|| (PathBuf::from("cgroup"), io::Error::from(io::ErrorKind::NotFound)))?;
        return attach(rules, dir).map_err(|error| (dir.clone(), error));
    }
    let Some(dir) = group.dir_with("devices.deny") else {
        let error = io::Error::new(io::ErrorKind::Unsupported, "the kernel has no devices controller");
        return Err((PathBuf::from("devices"), error));
    };
    for rule in rules {
        let path = dir.join(if rule.allow { "devices.allow" } else { "devices.deny" });
        // `a` alone resets the list; with numbers after it some kernels refuse it.
        let line = if rule.kind == 'a' && rule.major.is_none() { "a".to_owned() } else { rule.line() };
        fs::write(&path, line).map_err(|error| (path, error))?;
    }
    Ok(())
}

fn attach(rules: &[Rule], dir: &Path) -> io::Result<()> {
    if rules.len() > RULES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("more than {RULES_MAX} device rules")));
    }
    let program = sys::load_device_program(&assemble(rules))?;
    let group = fs::File::open(dir)?;
    sys::attach_device_program(&group, &program)
}

// Instructions of the kernel's virtual machine, as far as the program needs them (linux/bpf_common.h, bpf.h).
const LOAD_WORD: u8 = 0x61;
const AND_IMMEDIATE: u8 = 0x57;
const SHIFT_RIGHT_IMMEDIATE: u8 = 0x77;
const MOVE_IMMEDIATE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

// What the kernel passes: access << 16 | kind, major, minor.
const KIND_BLOCK: i32 = 1;
const KIND_CHARACTER: i32 = 2;
const ACCESS_MAKE: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(code)
        | u64::from(destination & 0xf) << 8
        | u64::from(source & 0xf) << 12
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(immediate.cast_unsigned()) << 32
}

/// A program that allows what a rule allows, as a whole, and denies the rest (D1). Later denials are not among our rules.
fn assemble(rules: &[Rule]) -> Vec<u64> {
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE_REGISTER, 3, 2, 0, 0),
        instruction(AND_IMMEDIATE, 3, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_IMMEDIATE, 2, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().filter(|rule| rule.allow) {
        // Each test is (instructions before the jump, the jump's register and value).
        let mut tests: Vec<(Vec<u64>, u8, i32)> = Vec::new();
        match rule.kind {
            'b' => tests.push((vec![], 3, KIND_BLOCK)),
            'c' => tests.push((vec![], 3, KIND_CHARACTER)),
            _ => {}
        }
        let granted = i32::from(rule.make) * ACCESS_MAKE
            + i32::from(rule.read) * ACCESS_READ
            + i32::from(rule.write) * ACCESS_WRITE;
        let missing = (ACCESS_MAKE | ACCESS_READ | ACCESS_WRITE) & !granted;
        if missing != 0 {
            tests.push((
                vec![instruction(MOVE_REGISTER, 6, 2, 0, 0), instruction(AND_IMMEDIATE, 6, 0, 0, missing)],
                6,
                0,
            ));
        }
        if let Some(major) = rule.major {
            tests.push((vec![], 4, major.cast_signed()));
        }
        if let Some(minor) = rule.minor {
            tests.push((vec![], 5, minor.cast_signed()));
        }
        if tests.is_empty() {
            // It allows everything: what would follow could not be reached, and the kernel refuses such a program.
            program.extend([instruction(MOVE_IMMEDIATE, 0, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)]);
            return program;
        }
        let mut length: usize = tests.iter().map(|(before, _, _)| before.len() + 1).sum::<usize>() + 2;
        for (before, register, value) in tests {
            length -= before.len() + 1;
            program.extend(before);
            // To the first instruction after this rule; a rule is at most 8 long.
            program.push(instruction(JUMP_NOT_EQUAL, register, 0, i16::try_from(length).unwrap_or(i16::MAX), value));
        }
        program.extend([instruction(MOVE_IMMEDIATE, 0, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)]);
    }
    program.extend([instruction(MOVE_IMMEDIATE, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program on one request, as the kernel would.
    fn run(program: &[u64], kind: i32, access: i32, major: u32, minor: u32) -> bool {
        let context = [(access << 16 | kind).cast_unsigned(), major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0;
        loop {
            let word = program[at];
            let (code, to, from) = (word as u8, (word >> 8 & 0xf) as usize, (word >> 12 & 0xf) as usize);
            let (offset, immediate) = ((word >> 16) as u16 as i16, (word >> 32) as u32 as i32);
            at += 1;
            match code {
                LOAD_WORD => registers[to] = u64::from(context[offset as usize / 4]),
                AND_IMMEDIATE => registers[to] &= immediate as i64 as u64,
                SHIFT_RIGHT_IMMEDIATE => registers[to] >>= immediate,
                MOVE_IMMEDIATE => registers[to] = immediate as i64 as u64,
                MOVE_REGISTER => registers[to] = registers[from],
                JUMP_NOT_EQUAL => {
                    if registers[to] != immediate as i64 as u64 {
                        at = (at as i64 + i64::from(offset)) as usize;
                    }
                }
                EXIT => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_default_program_allows_dockers_devices_and_no_other() {
        let program = assemble(&default_rules());
        assert!(run(&program, KIND_CHARACTER, ACCESS_READ | ACCESS_WRITE, 1, 3));
        assert!(run(&program, KIND_CHARACTER, ACCESS_READ | ACCESS_WRITE, 136, 77));
        assert!(run(&program, KIND_BLOCK, ACCESS_MAKE, 8, 0));
        assert!(!run(&program, KIND_BLOCK, ACCESS_READ, 8, 0));
        assert!(!run(&program, KIND_BLOCK, ACCESS_READ | ACCESS_MAKE, 8, 0));
        assert!(!run(&program, KIND_CHARACTER, ACCESS_READ, 10, 229));
        assert!(!run(&program, KIND_CHARACTER, ACCESS_READ | ACCESS_WRITE, 10, 200));
        assert!(!run(&program, KIND_BLOCK, ACCESS_READ, 1, 3));
    }

    #[test]
    fn added_rules_and_the_privileged_one_count() {
        let mut rules = default_rules();
        rules.push(Rule::parse("b 8:* r").unwrap());
        let program = assemble(&rules);
        assert!(run(&program, KIND_BLOCK, ACCESS_READ, 8, 17));
        assert!(!run(&program, KIND_BLOCK, ACCESS_WRITE, 8, 17));
        assert!(run(&assemble(&[Rule::allow_all()]), KIND_BLOCK, ACCESS_WRITE, 8, 17));
    }

    #[test]
    fn rule_texts_are_dockers() {
        assert_eq!(Rule::parse("c 42:* rmw").unwrap().line(), "c 42:* rwm");
        for text in ["", "c", "c 1:3", "x 1:3 r", "c 1 r", "c 1:3 rx", "c -1:3 r", "c 1:3 r extra", "c 1:3 "] {
            assert!(Rule::parse(text).is_none(), "{text}");
        }
    }

    /// A group of the cgroup v2 hierarchy (the hybrid layout has one too), removed at the end.
    struct Group(PathBuf);

    impl Drop for Group {
        fn drop(&mut self) {
            let _ = Cgroup::from_dirs(vec![self.0.clone()]).kill_and_remove();
        }
    }

    #[test]
    fn on_cgroup_v2_a_device_that_is_not_allowed_cannot_be_opened() {
        let name = "on_cgroup_v2_a_device_that_is_not_allowed_cannot_be_opened";
        let mount = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let mount = mount.into_iter().find(|mount| mount.join("cgroup.controllers").exists());
        let Some(mount) = mount.filter(|_| rustix::process::geteuid().is_root()) else {
            assert!(std::env::var_os("CI").is_none(), "{name}: needs root and cgroup v2");
            eprintln!("SKIPPED: {name}: needs root and cgroup v2");
            return;
        };
        let group = Group(mount.join(format!("baleen-devices-{}", std::process::id())));
        fs::create_dir(&group.0).unwrap();
        apply(&default_rules(), &Cgroup::from_dirs(vec![group.0.clone()]), true).unwrap();
        let procs = group.0.join("cgroup.procs");
        let script = format!(
            "echo $$ > {} && head -c 1 /dev/zero | wc -c && for d in /dev/kmsg /dev/loop-control; do test -e $d || continue; \
             head -c 0 $d 2>&1 | grep -q 'Operation not permitted' || echo opened $d; done",
            procs.display()
        );
        let output = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "1", "{output:?}");
    }

    #[test]
    fn the_kernel_accepts_the_program() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "needs root");
            eprintln!("SKIPPED: the_kernel_accepts_the_program: needs root");
            return;
        }
        let mut rules = default_rules();
        rules.extend((0..400).map(|minor| Rule::allow('b', 8, minor, "rw")));
        sys::load_device_program(&assemble(&rules)).unwrap();
        rules.insert(0, Rule::allow_all());
        sys::load_device_program(&assemble(&rules)).unwrap();
    }
}
