//! Users and groups of the client are others on the host: rules, and what follows from them.
//!
//! The way from the client to the host and the way back are two tables that know nothing of each other; the rule `map`
//! makes a line in both. An id that no line is about is the same on both sides.

use std::fmt;
use std::str::FromStr;

use ashore_server::Result;
use ashore_wire::Errno;

/// The largest id. The one after it means "none", and no rule is about it.
const LAST_ID: u32 = u32::MAX - 1;

/// One rule, as `--translate-uid` and `--translate-gid` take it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdRule {
    to_host: Option<Line>,
    to_guest: Option<Line>,
}

/// Ids from `first` to `last` and what becomes of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Line {
    first: u32,
    last: u32,
    becomes: Becomes,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Becomes {
    /// `first` becomes this one, and so on.
    From(u32),
    /// All of them this one.
    One(u32),
    /// They may not be used.
    Forbidden,
}

/// What is wrong with a rule, or with two of them together.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IdRuleError {
    /// Not a rule.
    #[error(
        "\"{0}\" is not a rule for ids; use map:GUEST:HOST:COUNT, guest:GUEST:HOST:COUNT, host:HOST:GUEST:COUNT, \
         squash-guest:GUEST:HOST:COUNT, squash-host:HOST:GUEST:COUNT or forbid-guest:GUEST:COUNT"
    )]
    Form(String),
    /// Numbers that are no ids.
    #[error("\"{0}\": ids go from 0 to 4294967294, and COUNT is at least 1; the range leaves that")]
    Range(String),
    /// Two rules are about the same id.
    #[error("two rules say what {side} id {id} becomes; let their ranges not overlap")]
    Overlap {
        /// `guest` or `host`.
        side: &'static str,
        /// The id.
        id: u32,
    },
}

impl FromStr for IdRule {
    type Err = IdRuleError;

    fn from_str(text: &str) -> std::result::Result<IdRule, IdRuleError> {
        let form = || IdRuleError::Form(text.to_owned());
        let number = |field: &str| field.parse::<u64>().map_err(|_| form());
        let fields: Vec<&str> = text.split(':').collect();
        let (kind, numbers) = match fields[..] {
            ["forbid-guest", first, count] => ("forbid-guest", [number(first)?, 0, number(count)?]),
            [kind, first, target, count] => (kind, [number(first)?, number(target)?, number(count)?]),
            // As with the incumbent, the kind may be left out.
            [first, target, count] => ("map", [number(first)?, number(target)?, number(count)?]),
            _ => return Err(form()),
        };
        let [first, target, count] = numbers;
        let reach = |first: u64, count: u64| -> std::result::Result<(u32, u32), IdRuleError> {
            match (u32::try_from(first), first.checked_add(count).map(|end| end.wrapping_sub(1))) {
                (Ok(first), Some(last)) if count > 0 && last <= LAST_ID.into() => Ok((first, last as u32)),
                _ => Err(IdRuleError::Range(text.to_owned())),
            }
        };
        let line = |(first, last): (u32, u32), becomes| Some(Line { first, last, becomes });
        let shift = || Ok(Becomes::From(reach(target, count)?.0));
        let squash = || Ok(Becomes::One(reach(target, 1)?.0));
        let source = reach(first, count)?;
        Ok(match kind {
            "guest" => IdRule { to_host: line(source, shift()?), to_guest: None },
            "host" => IdRule { to_host: None, to_guest: line(source, shift()?) },
            "squash-guest" => IdRule { to_host: line(source, squash()?), to_guest: None },
            "squash-host" => IdRule { to_host: None, to_guest: line(source, squash()?) },
            "forbid-guest" => IdRule { to_host: line(source, Becomes::Forbidden), to_guest: None },
            "map" => IdRule {
                to_host: line(source, shift()?),
                to_guest: line(reach(target, count)?, Becomes::From(source.0)),
            },
            _ => return Err(form()),
        })
    }
}

/// Both tables, for users or for groups. The default changes nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IdMap {
    /// In order of their ids, without overlap.
    to_host: Vec<Line>,
    to_guest: Vec<Line>,
}

impl IdMap {
    /// Puts rules together. Fails if two say what becomes of the same id.
    pub fn new(rules: impl IntoIterator<Item = IdRule>) -> std::result::Result<IdMap, IdRuleError> {
        let mut map = IdMap::default();
        for rule in rules {
            map.to_host.extend(rule.to_host);
            map.to_guest.extend(rule.to_guest);
        }
        for (side, lines) in [("guest", &mut map.to_host), ("host", &mut map.to_guest)] {
            lines.sort_unstable_by_key(|line| line.first);
            if let Some(pair) = lines.windows(2).find(|pair| pair[0].last >= pair[1].first) {
                return Err(IdRuleError::Overlap { side, id: pair[1].first });
            }
        }
        Ok(map)
    }

    /// What the client's own user needs who runs a server without privileges: all that the client makes belongs to
    /// `host`, and what belongs to `host` is `guest`'s in the client. Other ids of the host stay what they are.
    pub fn all_to_one(host: u32, guest: u32) -> std::result::Result<IdMap, IdRuleError> {
        let rules =
            [format!("squash-guest:0:{host}:{}", u64::from(LAST_ID) + 1), format!("host:{host}:{guest}:1")];
        let rules: std::result::Result<Vec<IdRule>, _> = rules.iter().map(|rule| rule.parse()).collect();
        IdMap::new(rules?)
    }

    /// Whether all ids stay what they are.
    pub fn is_identity(&self) -> bool {
        self.to_host.is_empty() && self.to_guest.is_empty()
    }

    /// The host's id for a client's; EPERM if the client may not use it.
    pub(crate) fn to_host(&self, id: u32) -> Result<u32> {
        translate(&self.to_host, id).ok_or(Errno::EPERM)
    }

    /// The client's id for one of the host's.
    pub(crate) fn to_guest(&self, id: u32) -> u32 {
        translate(&self.to_guest, id).unwrap_or(id)
    }
}

/// `None` if it is forbidden.
fn translate(lines: &[Line], id: u32) -> Option<u32> {
    let Some(line) =
        lines[..lines.partition_point(|line| line.first <= id)].last().filter(|line| id <= line.last)
    else {
        return Some(id);
    };
    match line.becomes {
        Becomes::From(target) => Some(target + (id - line.first)),
        Becomes::One(target) => Some(target),
        Becomes::Forbidden => None,
    }
}

fn range(first: u32, last: u32) -> String {
    if first == last { first.to_string() } else { format!("{first} to {last}") }
}

impl fmt::Display for IdMap {
    /// A table, with one line for each rule and way.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (from, to, lines) in [("guest", "host", &self.to_host), ("host", "guest", &self.to_guest)] {
            for Line { first, last, becomes } in lines {
                let ids = range(*first, *last);
                let target = match becomes {
                    Becomes::From(target) => format!("{to} {}", range(*target, target + (last - first))),
                    Becomes::One(target) => format!("{to} {target}, all of them"),
                    Becomes::Forbidden => "nobody; they may not be used".to_owned(),
                };
                writeln!(f, "  {:<32} {target}", format!("{from} {ids}"))?;
            }
            let rest = if lines.is_empty() { "any" } else { "any other" };
            writeln!(f, "  {:<32} {to}, the same", format!("{from} {rest}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(rules: &[&str]) -> IdMap {
        IdMap::new(rules.iter().map(|rule| rule.parse().unwrap())).unwrap()
    }

    #[test]
    fn each_kind_of_rule_does_what_it_says_and_only_that() {
        let map = map(&[
            "map:0:100000:1000",
            "guest:1000:1:2",
            "host:1:5000:2",
            "squash-guest:2000:65534:10",
            "squash-host:200000:99:1000",
            "forbid-guest:3000:1294964295",
        ]);
        let to_host: Vec<_> = [0, 999, 1000, 1001, 1002, 2000, 2009, 2010].map(|id| map.to_host(id)).into();
        assert_eq!(to_host, [100_000, 100_999, 1, 2, 1002, 65534, 65534, 2010].map(Ok));
        assert_eq!((map.to_host(3000), map.to_host(1_294_967_294)), (Err(Errno::EPERM), Err(Errno::EPERM)));
        assert_eq!((map.to_host(2999), map.to_host(1_294_967_295)), (Ok(2999), Ok(1_294_967_295)));
        let to_guest = [100_000, 100_999, 101_000, 1, 2, 200_500, 65534, 0].map(|id| map.to_guest(id));
        assert_eq!(to_guest, [0, 999, 101_000, 5000, 5001, 99, 65534, 0]);
        assert_eq!((map.to_host(u32::MAX), map.to_guest(u32::MAX)), (Ok(u32::MAX), u32::MAX));
    }

    #[test]
    fn mistakes_are_named() {
        for (rule, message) in [
            ("", "is not a rule"),
            ("mapp:0:0:1", "is not a rule"),
            ("map:0:0", "is not a rule"),
            ("forbid-guest:1:2:3:4", "is not a rule"),
            ("map:-1:0:1", "is not a rule"),
            ("map:0:0:0", "COUNT is at least 1"),
            ("map:4294967295:0:1", "the range leaves that"),
            ("guest:0:4294967294:2", "the range leaves that"),
            ("map:0:0:4294967296", "the range leaves that"),
            ("map:18446744073709551615:0:1", "the range leaves that"),
        ] {
            let error = rule.parse::<IdRule>().unwrap_err().to_string();
            assert!(error.contains(message), "{rule:?}: {error}");
        }
        let both = ["map:0:1000:10", "squash-guest:9:0:1"].map(|rule| rule.parse().unwrap());
        assert_eq!(IdMap::new(both), Err(IdRuleError::Overlap { side: "guest", id: 9 }));
        let both = ["map:0:1000:10", "host:1009:0:1"].map(|rule| rule.parse().unwrap());
        assert_eq!(IdMap::new(both), Err(IdRuleError::Overlap { side: "host", id: 1009 }));
    }

    #[test]
    fn a_rule_without_a_kind_goes_both_ways() {
        assert_eq!("0:1000:5".parse::<IdRule>(), "map:0:1000:5".parse());
    }

    #[test]
    fn all_to_one_takes_everybody_in() {
        let map = IdMap::all_to_one(1001, 0).unwrap();
        assert_eq!([0, 7, 1001, LAST_ID].map(|id| map.to_host(id)), [Ok(1001); 4]);
        assert_eq!([1001, 1000, 0].map(|id| map.to_guest(id)), [0, 1000, 0]);
        let table = map.to_string();
        let expected = [
            "  guest 0 to 4294967294            host 1001, all of them",
            "  guest any other                  host, the same",
            "  host 1001                        guest 0",
            "  host any other                   guest, the same",
        ];
        assert_eq!(table.lines().collect::<Vec<_>>(), expected);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(map|host|guest|[0-9]{0,21}|:|-)*") {
            let _ = text.parse::<IdRule>();
        }

        #[test]
        fn map_rules_lead_back_to_where_one_came_from(guest: u32, host: u32, count: u32, id: u32) {
            let count = u64::from(count) + 1;
            if let Ok(rule) = format!("map:{guest}:{host}:{count}").parse::<IdRule>() {
                let map = IdMap::new([rule]).unwrap();
                let inside = guest + (u64::from(id) % count) as u32;
                prop_assert_eq!(map.to_guest(map.to_host(inside).unwrap()), inside);
            }
        }
    }
}
