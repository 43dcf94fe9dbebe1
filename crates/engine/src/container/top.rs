//! Top: the processes of a container, as the host sees them. No program of the container is run.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Arc;

use baleen_runtime::processes;

use super::run::runtime_error;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::time::Timestamp;

/// Clock ticks of a second, as the kernel shows times to programs.
const TICKS_PER_SECOND: u64 = 100;
/// What the host's `ps` may say.
const OUTPUT_BYTES_MAX: u64 = 4 << 20;
/// Longest arguments for it.
const ARGUMENTS_BYTES_MAX: usize = 1024;

/// Columns and rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessTable {
    /// Names of the columns.
    pub titles: Vec<String>,
    /// One row a process.
    pub processes: Vec<Vec<String>>,
}

impl Engine {
    /// The processes of a container, in the columns of `ps` with these arguments (empty is `-ef`, for which no program is run).
    ///
    /// # Errors
    /// `Conflict` if it does not run; `InvalidParameter` if the host's `ps` does not take the arguments.
    pub async fn top(self: &Arc<Self>, name: &str, arguments: &str) -> Result<ProcessTable, EngineError> {
        let container = self.containers.find(name)?;
        let id = container.id().to_owned();
        if !container.live().state.status.is_running() {
            return Err(EngineError::conflict(format!("container {id} is not running")));
        }
        let arguments = arguments.trim().to_owned();
        let run_dir = container.run_dir(&self.config.exec_root);
        let table = self.door.enter("list processes", move || {
            let pids = processes(&run_dir).map_err(|error| runtime_error("list processes", error))?;
            match arguments.as_str() {
                "" | "-ef" => Ok(full_table(&pids)),
                arguments => host_table(&pids, arguments),
            }
        });
        let table = table.await?;
        self.container_event(&container, "top", &[]);
        Ok(table)
    }
}

/// The columns of `ps -ef`, read from `/proc`.
fn full_table(pids: &[i32]) -> ProcessTable {
    let titles = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"].map(str::to_owned).to_vec();
    let users = host_users();
    let booted = boot_seconds();
    // One that has ended meanwhile is not listed.
    let processes = pids.iter().filter_map(|&pid| row(pid, &users, booted)).collect();
    ProcessTable { titles, processes }
}

fn row(pid: i32, users: &BTreeMap<u32, String>, booted: u64) -> Option<Vec<String>> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let stat = read("stat")?;
    let (head, rest) = stat.rsplit_once(") ")?;
    let name = head.split_once('(')?.1;
    let fields: Vec<&str> = rest.split(' ').collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    let uid: u32 =
        read("status")?.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()?;
    let ticks = number(11)? + number(12)?;
    let begun = booted + number(19)? / TICKS_PER_SECOND;
    let now = u64::try_from(Timestamp::now().seconds).unwrap_or(0);
    let share = ticks * 100 / TICKS_PER_SECOND / now.saturating_sub(begun).max(1);
    let seconds = ticks / TICKS_PER_SECOND;
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<String> = command
        .split(|&byte| byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let command = if words.is_empty() { format!("[{name}]") } else { words.join(" ") };
    Some(vec![
        users.get(&uid).cloned().unwrap_or_else(|| uid.to_string()),
        pid.to_string(),
        fields.get(1)?.to_string(),
        share.min(99).to_string(),
        clock(begun),
        terminal(number(4)?),
        format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
        command,
    ])
}

/// `hh:mm` of a moment, in UTC.
fn clock(seconds: u64) -> String {
    format!("{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60)
}

/// The name of a terminal by its device number.
fn terminal(device: u64) -> String {
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xfff00);
    match major {
        0 => "?".to_owned(),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 => format!("tty{minor}"),
        _ => format!("{major}:{minor}"),
    }
}

/// Names of the host's users, as the host's `ps` would show them.
fn host_users() -> BTreeMap<u32, String> {
    let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let entry = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        Some((fields.nth(1)?.parse().ok()?, name))
    };
    text.lines().rev().filter_map(entry).collect()
}

fn boot_seconds() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0)
}

/// What the host's `ps` says of these processes.
fn host_table(pids: &[i32], arguments: &str) -> Result<ProcessTable, EngineError> {
    let refuse = |why: String| EngineError::invalid(format!("ps {arguments}: {why}"));
    if arguments.len() > ARGUMENTS_BYTES_MAX || arguments.contains('\0') {
        return Err(EngineError::invalid("arguments of ps are too long or malformed"));
    }
    let mut command = Command::new("ps");
    command.args(arguments.split_whitespace()).env_clear().env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| refuse(format!("the host has no ps that can be run: {error}")))?;
    let mut text = String::new();
    let read = child.stdout.take().map(|out| out.take(OUTPUT_BYTES_MAX).read_to_string(&mut text));
    let status = child.wait().map_err(|error| refuse(error.to_string()))?;
    if !status.success() || read.is_none_or(|read| read.is_err()) {
        return Err(refuse(format!("the host's ps ended with {status}")));
    }
    table_of(&text, pids).ok_or_else(|| EngineError::invalid("Couldn't find PID field in ps output"))
}

/// The rows of these processes in the output of a `ps`; `None` without a column `PID`.
fn table_of(text: &str, pids: &[i32]) -> Option<ProcessTable> {
    let mut lines = text.lines();
    let titles: Vec<String> = lines.next()?.split_whitespace().map(str::to_owned).collect();
    let column = titles.iter().position(|title| title == "PID")?;
    let rows = lines.filter_map(|line| {
        // The last column has the rest of the line, blanks and all.
        let mut fields = Vec::with_capacity(titles.len());
        let mut rest = line.trim();
        while fields.len() + 1 < titles.len() {
            let (field, after) = rest.split_once(char::is_whitespace)?;
            fields.push(field.to_owned());
            rest = after.trim_start();
        }
        fields.push(rest.to_owned());
        fields[column].parse().is_ok_and(|pid: i32| pids.contains(&pid)).then_some(fields)
    });
    Some(ProcessTable { processes: rows.collect(), titles })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_row_with_its_own_number_and_command() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let table = full_table(&[pid, i32::MAX]);
        assert_eq!(table.titles.len(), 8);
        assert_eq!(table.processes.len(), 1);
        assert_eq!(table.processes[0][1], pid.to_string());
        assert!(table.processes[0][7].contains("engine"), "{:?}", table.processes[0]);
    }

    #[test]
    fn rows_of_other_processes_are_left_out_and_the_last_column_keeps_its_blanks() {
        let table = table_of("USER PID COMMAND\nroot 1 init  -x\nann  22 sh -c  true\n", &[22]).unwrap();
        assert_eq!(table.processes, [["ann", "22", "sh -c  true"]]);
        assert!(table_of("USER COMMAND\n", &[1]).is_none());
    }

    #[test]
    fn terminals_have_their_names() {
        assert_eq!([0, 0x8801, 0x8b05, 0x0403].map(terminal), ["?", "pts/1", "pts/773", "tty3"]);
    }
}
