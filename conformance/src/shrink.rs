//! Makes a failing program small: leaves out commands, then parts of commands, as long as it still fails.
//!
//! Knows nothing about servers: whether a program still fails is the caller's to say. The number of questions is bounded,
//! because each costs two fresh servers.

use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{RangeRequest, RequestOp, TxnRequest};

use crate::command::Command;

pub const TRIALS_MAX: usize = 400;

/// The smallest program found. `fails` is asked at most [`TRIALS_MAX`] times, and `program` must fail.
///
/// # Errors
/// Those of `fails`.
pub async fn shrink<E>(
    program: Vec<Command>,
    mut fails: impl AsyncFnMut(&[Command]) -> Result<bool, E>,
) -> Result<Vec<Command>, E> {
    let mut trials = TRIALS_MAX;
    let mut smallest = program;
    let mut chunk = smallest.len().div_ceil(2);
    while chunk > 0 {
        let mut removed = false;
        let mut at = 0;
        while at < smallest.len() && trials > 0 {
            let mut candidate = smallest.clone();
            candidate.drain(at..(at + chunk).min(smallest.len()));
            trials -= 1;
            if !candidate.is_empty() && fails(&candidate).await? {
                smallest = candidate;
                removed = true;
            } else {
                at += chunk;
            }
        }
        if chunk == 1 && !removed {
            break;
        }
        chunk = if removed { chunk.min(smallest.len().div_ceil(2)).max(1) } else { chunk / 2 };
    }
    simplify(smallest, trials, fails).await
}

/// Replaces commands by simpler ones until none can be.
async fn simplify<E>(
    mut smallest: Vec<Command>,
    mut trials: usize,
    mut fails: impl AsyncFnMut(&[Command]) -> Result<bool, E>,
) -> Result<Vec<Command>, E> {
    let mut index = 0;
    'commands: while index < smallest.len() {
        for simpler in simpler(&smallest[index]) {
            if trials == 0 {
                return Ok(smallest);
            }
            trials -= 1;
            let mut candidate = smallest.clone();
            candidate[index] = simpler;
            if fails(&candidate).await? {
                smallest = candidate;
                continue 'commands;
            }
        }
        index += 1;
    }
    Ok(smallest)
}

/// Commands with one part less.
fn simpler(command: &Command) -> Vec<Command> {
    match command {
        Command::Range(request) => simpler_ranges(request).into_iter().map(Command::Range).collect(),
        Command::Txn(request) => simpler_txns(request).into_iter().map(Command::Txn).collect(),
        Command::Put(request) => {
            let plain = proto::etcdserverpb::PutRequest {
                key: request.key.clone(),
                value: request.value.clone(),
                ..Default::default()
            };
            if plain == *request { Vec::new() } else { vec![Command::Put(plain)] }
        }
        _ => Vec::new(),
    }
}

fn simpler_ranges(request: &RangeRequest) -> Vec<RangeRequest> {
    let without: [fn(&mut RangeRequest); 8] = [
        |request| request.limit = 0,
        |request| request.revision = 0,
        |request| (request.sort_order, request.sort_target) = (0, 0),
        |request| request.serializable = false,
        |request| request.keys_only = false,
        |request| request.count_only = false,
        |request| (request.min_mod_revision, request.max_mod_revision) = (0, 0),
        |request| (request.min_create_revision, request.max_create_revision) = (0, 0),
    ];
    let candidates = without.iter().map(|remove| {
        let mut candidate = request.clone();
        remove(&mut candidate);
        candidate
    });
    candidates.filter(|candidate| candidate != request).collect()
}

fn simpler_txns(request: &TxnRequest) -> Vec<TxnRequest> {
    let mut candidates = Vec::new();
    for index in 0..request.compare.len() {
        let mut candidate = request.clone();
        candidate.compare.remove(index);
        candidates.push(candidate);
    }
    for index in 0..request.success.len() {
        for replacement in simpler_operations(&request.success[index]) {
            let mut candidate = request.clone();
            candidate.success.splice(index..=index, replacement);
            candidates.push(candidate);
        }
    }
    for index in 0..request.failure.len() {
        for replacement in simpler_operations(&request.failure[index]) {
            let mut candidate = request.clone();
            candidate.failure.splice(index..=index, replacement);
            candidates.push(candidate);
        }
    }
    candidates
}

/// What may stand in the place of an operation: nothing, or itself with one part less.
fn simpler_operations(operation: &RequestOp) -> Vec<Option<RequestOp>> {
    let mut replacements = vec![None];
    let parts: Vec<Request> = match &operation.request {
        Some(Request::RequestTxn(request)) => {
            simpler_txns(request).into_iter().map(Request::RequestTxn).collect()
        }
        Some(Request::RequestRange(request)) => {
            simpler_ranges(request).into_iter().map(Request::RequestRange).collect()
        }
        _ => Vec::new(),
    };
    replacements.extend(parts.into_iter().map(|request| Some(RequestOp { request: Some(request) })));
    replacements
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    #[tokio::test]
    async fn what_is_not_needed_goes() {
        let mut lines: Vec<String> = (0..200).map(|n| format!("put k{n} 1")).collect();
        lines[50] = "put needed 1 prev_kv".into();
        lines[150] =
            "txn { if mod(a) = 1 ; then put x 1 ; txn { then get b limit=3 ; get needed } ; else del c }"
                .into();
        let program: Vec<Command> = lines.iter().flat_map(|line| parse::commands(line).unwrap()).collect();
        let fails = async |program: &[Command]| {
            let text: Vec<String> = program.iter().map(crate::print::command).collect();
            let text = text.join("\n");
            Ok::<_, ()>(text.contains("put needed") && text.contains("get needed"))
        };
        let shrunk = shrink(program, fails).await.unwrap();
        let text: Vec<String> = shrunk.iter().map(crate::print::command).collect();
        assert_eq!(text, ["put needed 1", "txn { then txn { then get needed } }"]);
    }
}
