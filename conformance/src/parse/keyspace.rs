//! Ranges, puts, deletes and transactions as text.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

use super::words::Words;
use crate::{literal, symbol};

/// `KEY`, `KEY END`, `prefix KEY`, `from KEY` or `all`, as key and range end.
pub fn keys(words: &mut Words) -> Result<(Bytes, Bytes)> {
    let zero = Bytes::from_static(b"\0");
    if words.take_if("all") {
        return Ok((zero.clone(), zero));
    }
    if words.take_if("from") {
        return Ok((words.literal("the first key")?, zero));
    }
    if words.take_if("prefix") {
        let prefix = words.literal("the prefix")?;
        let end = prefix_end(&prefix);
        return Ok((prefix, end));
    }
    let key = words.literal("the key")?;
    let range_end = if words.at_literal() { words.literal("the range end")? } else { Bytes::new() };
    Ok((key, range_end))
}

fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return Bytes::from(end);
        }
    }
    Bytes::from_static(b"\0")
}

pub fn range(words: &mut Words) -> Result<RangeRequest> {
    let (key, range_end) = keys(words)?;
    let mut request = RangeRequest { key, range_end, ..Default::default() };
    while !at_end(words) {
        if let Some((name, value)) = words.option() {
            range_option(&mut request, &name, &value)?;
            continue;
        }
        match words.next("a flag")?.as_str() {
            "serializable" => request.serializable = true,
            "keys_only" => request.keys_only = true,
            "count_only" => request.count_only = true,
            other => bail!("unknown flag {other:?} of get"),
        }
    }
    Ok(request)
}

fn range_option(request: &mut RangeRequest, name: &str, value: &str) -> Result<()> {
    match name {
        "limit" => request.limit = value.parse().context("limit")?,
        "rev" => request.revision = symbol::parse(value)?,
        "min_mod" => request.min_mod_revision = symbol::parse(value)?,
        "max_mod" => request.max_mod_revision = symbol::parse(value)?,
        "min_create" => request.min_create_revision = symbol::parse(value)?,
        "max_create" => request.max_create_revision = symbol::parse(value)?,
        "sort" => {
            request.sort_target = match value {
                "key" => SortTarget::Key.into(),
                "version" => SortTarget::Version.into(),
                "create" => SortTarget::Create.into(),
                "mod" => SortTarget::Mod.into(),
                "value" => SortTarget::Value.into(),
                number => number.parse().with_context(|| format!("sort target {number:?}"))?,
            }
        }
        "order" => {
            request.sort_order = match value {
                "none" => SortOrder::None.into(),
                "asc" => SortOrder::Ascend.into(),
                "desc" => SortOrder::Descend.into(),
                number => number.parse().with_context(|| format!("sort order {number:?}"))?,
            }
        }
        other => bail!("unknown option {other} of get"),
    }
    Ok(())
}

pub fn put(words: &mut Words) -> Result<PutRequest> {
    let key = words.literal("the key")?;
    let value = words.literal("the value")?;
    let mut request = PutRequest { key, value, ..Default::default() };
    while !at_end(words) {
        if let Some((name, value)) = words.option() {
            match name.as_str() {
                "lease" => request.lease = symbol::parse(&value)?,
                _ => bail!("unknown option {name} of put"),
            }
            continue;
        }
        match words.next("a flag")?.as_str() {
            "prev_kv" => request.prev_kv = true,
            "ignore_value" => request.ignore_value = true,
            "ignore_lease" => request.ignore_lease = true,
            other => bail!("unknown flag {other:?} of put"),
        }
    }
    Ok(request)
}

pub fn delete(words: &mut Words) -> Result<DeleteRangeRequest> {
    let (key, range_end) = keys(words)?;
    Ok(DeleteRangeRequest { key, range_end, prev_kv: words.take_if("prev_kv") })
}

pub fn txn(words: &mut Words) -> Result<TxnRequest> {
    let mut request = TxnRequest::default();
    words.take("{")?;
    if words.take_if("if") {
        while !at_end(words) {
            if words.take_if("times") {
                let count = words.number("times")? as usize;
                for one in &mut words.repeated(count)? {
                    request.compare.push(compare(one)?);
                }
            } else {
                request.compare.push(compare(words)?);
            }
            if !words.take_if(",") {
                break;
            }
        }
    }
    let mut then = true;
    while !words.take_if("}") {
        if words.take_if(";") {
            continue;
        }
        if words.take_if("then") {
            then = true;
        } else if words.take_if("else") {
            then = false;
        } else {
            let branch = if then { &mut request.success } else { &mut request.failure };
            operation(words, branch)?;
        }
    }
    Ok(request)
}

fn operation(words: &mut Words, branch: &mut Vec<RequestOp>) -> Result<()> {
    if words.take_if("times") {
        let count = words.number("times")? as usize;
        for one in &mut words.repeated(count)? {
            operation(one, branch)?;
        }
        return Ok(());
    }
    let request = match words.next("an operation")?.as_str() {
        "get" => Some(Request::RequestRange(range(words)?)),
        "put" => Some(Request::RequestPut(put(words)?)),
        "del" => Some(Request::RequestDeleteRange(delete(words)?)),
        "txn" => Some(Request::RequestTxn(txn(words)?)),
        "nothing" => None,
        other => bail!("unknown operation {other:?}"),
    };
    branch.push(RequestOp { request });
    Ok(())
}

/// `mod(KEYS) = 3`; a target union of another kind is `version:3`, a missing one `none`.
fn compare(words: &mut Words) -> Result<Compare> {
    let subject = words.next("a compare")?;
    let (target_name, keys_text) = subject
        .strip_suffix(')')
        .and_then(|open| open.split_once('('))
        .with_context(|| format!("a compare is target(keys), not {subject:?}"))?;
    let (key, range_end) = keys(&mut Words::of(keys_text)?)?;
    let target = target(target_name)?;
    let result = match words.next("=, !=, < or >")?.as_str() {
        "=" => CompareResult::Equal,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        "!=" => CompareResult::NotEqual,
        other => bail!("unknown comparison {other:?}"),
    };
    let operand = words.next("what to compare with")?;
    let target_union = match operand.split_once(':') {
        _ if operand == "none" => None,
        Some((kind, value)) if !operand.starts_with('"') => Some(union_of(self::target(kind)?, value)?),
        _ => Some(union_of(target, &operand)?),
    };
    Ok(Compare { result: result.into(), target: target.into(), key, range_end, target_union })
}

fn target(name: &str) -> Result<CompareTarget> {
    Ok(match name {
        "version" => CompareTarget::Version,
        "create" => CompareTarget::Create,
        "mod" => CompareTarget::Mod,
        "value" => CompareTarget::Value,
        "lease" => CompareTarget::Lease,
        other => bail!("unknown compare target {other:?}"),
    })
}

fn union_of(target: CompareTarget, operand: &str) -> Result<TargetUnion> {
    Ok(match target {
        CompareTarget::Version => TargetUnion::Version(symbol::parse(operand)?),
        CompareTarget::Create => TargetUnion::CreateRevision(symbol::parse(operand)?),
        CompareTarget::Mod => TargetUnion::ModRevision(symbol::parse(operand)?),
        CompareTarget::Value => TargetUnion::Value(literal::parse(operand)?),
        CompareTarget::Lease => TargetUnion::Lease(symbol::parse(operand)?),
    })
}

/// The end of an operation: of the line, or of its place in a transaction.
fn at_end(words: &Words) -> bool {
    words.peek().is_none_or(|word| [";", "}"].contains(&word))
}
