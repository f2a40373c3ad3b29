//! Medians of a suite's samples beside the goals, as Markdown for people and CSV for other programs.
//!
//! A ratio is the median of the rounds' own ratios: a machine that others share may be twice as fast a minute later, so that
//! only what was measured in one round compares.
//!
//! Judges nothing by hand: a row is met, near or missed by its ratio alone, and a row that was not measured says so.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::goals::{Against, Metric, Row, Targets};
use crate::server::Kind;
use crate::suite::Sample;

/// Client use of its core from which on a throughput says more about the client.
const CLIENT_SATURATED_PERCENT: f64 = 95.0;

#[derive(Debug)]
pub struct Report {
    /// Value by round.
    rounds: BTreeMap<(Kind, Metric), BTreeMap<u32, f64>>,
    client_saturated: bool,
}

/// One line of the table.
struct Judgement {
    ours: f64,
    peer: Option<(&'static str, f64)>,
    /// Bigger is better; for an absolute row our own value.
    ratio: f64,
    verdict: &'static str,
}

impl Report {
    pub fn new(samples: &[Sample]) -> Self {
        let mut rounds: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for Sample { server, round, metric, value } in samples {
            rounds.entry((*server, *metric)).or_default().insert(*round, *value);
        }
        let client_saturated = samples
            .iter()
            .any(|sample| sample.metric == Metric::ClientLoad && sample.value >= CLIENT_SATURATED_PERCENT);
        Self { rounds, client_saturated }
    }

    pub fn markdown(&self, rows: impl Iterator<Item = &'static Row>) -> String {
        let mut table = String::from(
            "| # | what | ours | peer | ratio | floor | goal | moonshot | |\n|---|---|---|---|---|---|---|---|---|\n",
        );
        for row in rows {
            if let Some(judgement) = self.judge(row) {
                write_row(&mut table, row, &judgement);
            }
        }
        if self.client_saturated {
            table.push_str(
                "\nIn at least one run the load generator used its whole core: throughputs there are lower bounds, and server \
                 CPU per operation is the figure to trust.\n",
            );
        }
        table
    }

    /// `None` if ours or the peer was not measured.
    fn judge(&self, row: &Row) -> Option<Judgement> {
        let rounds = self.rounds.get(&(Kind::Ours, row.metric))?;
        let ours = median(rounds.values().copied());
        let (peer, ratio) = match row.against {
            Against::Peer(kind) => {
                let theirs = self.rounds.get(&(kind, row.metric))?;
                let both = rounds.iter().filter_map(|(round, ours)| Some((ours, theirs.get(round)?)));
                let ratios: Vec<_> = both.map(|(ours, theirs)| row.metric.ratio(*ours, *theirs)).collect();
                if ratios.is_empty() {
                    return None;
                }
                (Some((kind.name(), median(theirs.values().copied()))), median(ratios))
            }
            Against::Figure(value) => (Some(("figure", value)), row.metric.ratio(ours, value)),
            Against::Absolute => (None, ours),
        };
        let verdict = match (row.targets, row.against) {
            (None, _) => "",
            // An absolute value is to be small, so its inverse is compared with the inverse of the targets.
            (Some(Targets { floor, goal, moonshot }), Against::Absolute) => {
                verdict(1.0 / ratio, 1.0 / floor, 1.0 / goal, 1.0 / moonshot)
            }
            (Some(Targets { floor, goal, moonshot }), _) => verdict(ratio, floor, goal, moonshot),
        };
        Some(Judgement { ours, peer, ratio, verdict })
    }
}

fn verdict(ratio: f64, floor: f64, goal: f64, moonshot: f64) -> &'static str {
    match ratio {
        _ if ratio >= moonshot => "moonshot",
        _ if ratio >= goal => "goal",
        _ if ratio >= floor => "floor",
        _ => "**below the floor**",
    }
}

fn write_row(table: &mut String, row: &Row, judgement: &Judgement) {
    let unit = row.metric.unit();
    let number = row.number.map(|number| number.to_string()).unwrap_or_default();
    let peer = match judgement.peer {
        Some((name, value)) => format!("{name} {} {unit}", short(value)),
        None => "-".into(),
    };
    let targets = match row.targets {
        Some(Targets { floor, goal, moonshot }) => format!("{floor} | {goal} | {moonshot}"),
        None => " | | ".into(),
    };
    let (what, ours, ratio) = (row.what, short(judgement.ours), short(judgement.ratio));
    writeln!(
        table,
        "| {number} | {what} | {ours} {unit} | {peer} | {ratio} | {targets} | {} |",
        judgement.verdict
    )
    .expect("writing to a String cannot fail");
}

/// Three significant digits.
fn short(value: f64) -> String {
    if value.is_infinite() {
        return "more than can be told".to_owned();
    }
    let decimals = match value.abs() {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

pub fn csv(samples: &[Sample]) -> String {
    let mut text = String::from("server,round,metric,value,unit\n");
    for Sample { server, round, metric, value } in samples {
        writeln!(text, "{},{round},{metric:?},{value:.6},{}", server.name(), metric.unit())
            .expect("writing to a String cannot fail");
    }
    text
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goals::rows;

    fn sample(server: Kind, metric: Metric, value: f64) -> Sample {
        Sample { server, round: 1, metric, value }
    }

    fn table(samples: &[Sample]) -> String {
        Report::new(samples).markdown(rows(&[]))
    }

    #[test]
    fn a_smaller_latency_is_a_bigger_ratio() {
        let metric = Metric::SharedCreateP99;
        let text = table(&[sample(Kind::Ours, metric, 10.0), sample(Kind::Kine, metric, 200.0)]);
        assert!(
            text.contains(
                "| 8 | create, 64 clients, shared cores: p99 | 10.0 ms | kine-sqlite 200 ms | 20.0 |"
            ),
            "{text}"
        );
        assert!(text.contains("| 30 | goal |"), "{text}");
    }

    #[test]
    fn below_the_floor_is_said_loudly() {
        let metric = Metric::GetThroughput;
        let text = table(&[sample(Kind::Ours, metric, 10.0), sample(Kind::Etcd, metric, 10.0)]);
        assert!(text.contains("**below the floor**"), "{text}");
    }

    #[test]
    fn an_absolute_row_needs_no_peer_and_is_better_small() {
        assert!(table(&[sample(Kind::Ours, Metric::ListGrowth, 1.1)]).contains("moonshot |\n"));
        assert!(table(&[sample(Kind::Ours, Metric::ListGrowth, 3.0)]).contains("| floor |"));
        assert!(table(&[sample(Kind::Ours, Metric::ListGrowth, 6.0)]).contains("**below the floor**"));
    }

    #[test]
    fn only_what_was_measured_in_one_round_is_compared() {
        let of_rounds = |server, values: [f64; 3]| {
            let metric = Metric::GetThroughput;
            (1..).zip(values).map(move |(round, value)| Sample { server, round, metric, value })
        };
        // The machine is ten times as fast in the second round.
        let ours = of_rounds(Kind::Ours, [20.0, 210.0, 22.0]);
        let mut samples: Vec<_> = ours.chain(of_rounds(Kind::Etcd, [10.0, 100.0, 11.0])).collect();
        assert!(table(&samples).contains("| 22.0 /s | etcd 11.0 /s | 2.00 |"), "{}", table(&samples));
        samples.retain(|sample| sample.server == Kind::Ours || sample.round == 2);
        assert!(table(&samples).contains("| 22.0 /s | etcd 100 /s | 2.10 |"), "{}", table(&samples));
    }

    #[test]
    fn nothing_at_all_is_not_a_number_of_times_better() {
        let metric = Metric::IdleCpu;
        let text = table(&[sample(Kind::Ours, metric, 0.0), sample(Kind::Etcd, metric, 0.5)]);
        assert!(text.contains("| more than can be told |"), "{text}");
    }

    #[test]
    fn rows_without_both_sides_are_left_out() {
        assert_eq!(table(&[sample(Kind::Ours, Metric::IdleRss, 10.0)]).lines().count(), 2);
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
