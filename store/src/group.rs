//! Many callers, one sync: whoever finds the log free writes for all who wait.
//!
//! G1  The records of one caller are never split over two batches, so they happen together or not at all.
//! G2  Facts follow the log in its order, before any caller is answered and before a compaction can read them.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::StoreError;
use crate::facts::Record;
use crate::store::Shared;
use crate::wal::{Purpose, Wal};

/// The most records that are written as one batch on behalf of several callers.
const RECORDS_MAX: usize = 64;

pub(crate) struct LogQueue {
    queue: Mutex<Queue>,
    answered: Condvar,
    wal: Mutex<Wal>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Ticket>,
    answers: Vec<(u64, Result<(), StoreError>)>,
    last_number: u64,
    writing: bool,
}

struct Ticket {
    number: u64,
    records: Vec<Record>,
    purpose: Purpose,
}

impl LogQueue {
    pub(crate) fn new(wal: Wal) -> Self {
        Self { queue: Mutex::default(), answered: Condvar::new(), wal: Mutex::new(wal) }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wal(&self) -> MutexGuard<'_, Wal> {
        self.wal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.wal().is_stopped()
    }

    /// Makes `records` durable and applies them to the facts.
    ///
    /// # Durability
    /// On `Ok` they are durable. On `Err` see [`Wal::append`].
    pub(crate) fn append(&self, shared: &Shared, records: Vec<Record>, purpose: Purpose) -> Result<(), StoreError> {
        let mut queue = self.queue();
        queue.last_number += 1;
        let number = queue.last_number;
        queue.waiting.push_back(Ticket { number, records, purpose });
        loop {
            if let Some(index) = queue.answers.iter().position(|(answered, _)| *answered == number) {
                return queue.answers.swap_remove(index).1;
            }
            if queue.writing {
                queue = self.answered.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            queue.writing = true;
            let tickets = take_batch(&mut queue.waiting);
            drop(queue);
            let answers = self.write(shared, tickets);
            queue = self.queue();
            queue.writing = false;
            queue.answers.extend(answers);
            self.answered.notify_all();
        }
    }

    fn write(&self, shared: &Shared, tickets: Vec<Ticket>) -> Vec<(u64, Result<(), StoreError>)> {
        let mut wal = self.wal();
        let purpose = tickets.first().map_or(Purpose::Add, |ticket| ticket.purpose);
        let records: Vec<Record> = tickets.iter().flat_map(|ticket| ticket.records.iter().cloned()).collect();
        let mut answers = Vec::new();
        match append_and_apply(&mut wal, shared, &records, purpose) {
            Ok(()) => answers.extend(tickets.iter().map(|ticket| (ticket.number, Ok(())))),
            // Too long together, and nothing was written: each by itself.
            Err(StoreError::TooLarge { .. }) if tickets.len() > 1 => {
                for ticket in &tickets {
                    let answer = append_and_apply(&mut wal, shared, &ticket.records, ticket.purpose);
                    answers.push((ticket.number, answer));
                }
            }
            // The first caller learns the cause; to the others it is the state of the log that matters.
            Err(error) => {
                let full = matches!(error, StoreError::LogFull);
                let others = || if full { StoreError::LogFull } else { StoreError::WritesStopped };
                answers.extend(tickets.iter().skip(1).map(|ticket| (ticket.number, Err(others()))));
                answers.extend(tickets.first().map(|ticket| (ticket.number, Err(error))));
            }
        }
        if wal.compaction_is_due() && !wal.is_stopped() {
            let facts = shared.state().facts.clone();
            if let Err(error) = wal.compact(&facts) {
                // What was asked for is durable; a log that has stopped says so to the next caller.
                tracing::warn!(error = %error, "log compaction failed");
            }
        }
        answers
    }
}

fn append_and_apply(wal: &mut Wal, shared: &Shared, records: &[Record], purpose: Purpose) -> Result<(), StoreError> {
    let first_sequence = wal.append(records, purpose)?;
    let mut state = shared.state();
    for (index, record) in records.iter().enumerate() {
        state.facts.apply(first_sequence + index as u64, record.clone());
    }
    Ok(())
}

/// Takes callers from the front that fit one batch and have one purpose (G1).
fn take_batch(waiting: &mut VecDeque<Ticket>) -> Vec<Ticket> {
    let mut tickets: Vec<Ticket> = waiting.pop_front().into_iter().collect();
    let mut records = tickets.iter().map(|ticket| ticket.records.len()).sum::<usize>();
    while let (Some(first), Some(next)) = (tickets.first(), waiting.front()) {
        records += next.records.len();
        if next.purpose != first.purpose || records > RECORDS_MAX {
            break;
        }
        tickets.extend(waiting.pop_front());
    }
    tickets
}
