//! Rules that give extended attributes other names on the host, in the incumbent's language.
//!
//! ```text
//!   :type:scope:key:prepend:     type   prefix, ok, bad, unsupported
//!   :map:key:prepend:            scope  client, server, all
//! ```
//!
//! Each rule begins with its own separator. For a name that comes from the client the first rule counts whose scope
//! takes in the client and whose `key` it begins with; for one from the host, the first whose scope takes in the server
//! and whose `prepend` it begins with. `prefix` puts `prepend` before a client's name and takes it off the host's; `ok`
//! lets a name through; `bad` and `unsupported` refuse a client's (EPERM, EOPNOTSUPP) and hide the host's.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::str::FromStr;

use ashore_server::Result;
use ashore_wire::Errno;

/// Bytes of the longest name of an attribute (`XATTR_NAME_MAX`).
const NAME_MAX: usize = 255;

/// A list of rules. Made by [`str::parse`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct XattrMap(Vec<Rule>);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Rule {
    action: Action,
    for_client: bool,
    for_server: bool,
    key: String,
    prepend: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Prefix,
    Ok,
    Bad,
    Unsupported,
}

/// What is wrong with a list of rules, and where.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum XattrMapError {
    /// No rule at all.
    #[error("there is no rule; the shortest list is \":ok:all:::\"")]
    Empty,
    /// A rule ends too early.
    #[error(
        "rule {rule} ends before its {field}: each field ends with the rule's first character, '{separator}', as in \
         \"{separator}prefix{separator}all{separator}key{separator}prepend{separator}\""
    )]
    Short {
        /// Which rule, counted from 1.
        rule: usize,
        /// What is missing.
        field: &'static str,
        /// What separates its fields.
        separator: char,
    },
    /// An unknown type.
    #[error("rule {rule} is of the unknown type \"{found}\"; use prefix, ok, bad, unsupported or map")]
    Type {
        /// Which rule, counted from 1.
        rule: usize,
        /// What stands there.
        found: String,
    },
    /// An unknown scope.
    #[error("rule {rule} has the unknown scope \"{found}\"; use client, server or all")]
    Scope {
        /// Which rule, counted from 1.
        rule: usize,
        /// What stands there.
        found: String,
    },
    /// A NUL cannot be in a name.
    #[error("rule {rule} contains a NUL")]
    Nul {
        /// Which rule, counted from 1.
        rule: usize,
    },
    /// Something follows a map rule.
    #[error("rule {rule} follows a map rule, which stands for a whole list and must be the last")]
    AfterMap {
        /// Which rule, counted from 1.
        rule: usize,
    },
    /// Some names match no rule.
    #[error(
        "no rule matches all other names of the {side}; end the list with \":ok:all:::\" or \":bad:all:::\""
    )]
    NotAll {
        /// `client` or `server`.
        side: &'static str,
    },
}

impl FromStr for XattrMap {
    type Err = XattrMapError;

    fn from_str(text: &str) -> std::result::Result<XattrMap, XattrMapError> {
        let (mut rules, mut rest, mut mapped) = (Vec::new(), text.trim(), false);
        for rule in 1.. {
            let Some(separator) = rest.chars().next() else { break };
            if mapped {
                return Err(XattrMapError::AfterMap { rule });
            }
            let mut fields = Fields { rule, separator, rest: &rest[separator.len_utf8()..] };
            match fields.next("type")? {
                "map" => {
                    mapped = true;
                    rules.extend(map(fields.next("key")?, fields.next("prepend")?));
                }
                kind => rules.push(fields.rule(kind)?),
            }
            rest = fields.rest.trim_start();
        }
        if rules.is_empty() {
            return Err(XattrMapError::Empty);
        }
        for (side, takes_rest) in [
            ("client", rules.iter().any(|rule| rule.for_client && rule.key.is_empty())),
            ("server", rules.iter().any(|rule| rule.for_server && rule.prepend.is_empty())),
        ] {
            if !takes_rest {
                return Err(XattrMapError::NotAll { side });
            }
        }
        Ok(XattrMap(rules))
    }
}

/// The fields of one rule.
struct Fields<'a> {
    rule: usize,
    separator: char,
    rest: &'a str,
}

impl<'a> Fields<'a> {
    fn next(&mut self, field: &'static str) -> std::result::Result<&'a str, XattrMapError> {
        let &mut Fields { rule, separator, rest } = self;
        let (value, rest) =
            rest.split_once(separator).ok_or(XattrMapError::Short { rule, field, separator })?;
        self.rest = rest;
        if value.contains('\0') { Err(XattrMapError::Nul { rule }) } else { Ok(value) }
    }

    fn rule(&mut self, kind: &str) -> std::result::Result<Rule, XattrMapError> {
        let rule = self.rule;
        let action = match kind {
            "prefix" => Action::Prefix,
            "ok" => Action::Ok,
            "bad" => Action::Bad,
            "unsupported" => Action::Unsupported,
            found => return Err(XattrMapError::Type { rule, found: found.to_owned() }),
        };
        let (for_client, for_server) = match self.next("scope")? {
            "client" => (true, false),
            "server" => (false, true),
            "all" => (true, true),
            found => return Err(XattrMapError::Scope { rule, found: found.to_owned() }),
        };
        let (key, prepend) = (self.next("key")?.to_owned(), self.next("prepend")?.to_owned());
        Ok(Rule { action, for_client, for_server, key, prepend })
    }
}

/// What a map rule stands for: names that begin with `key` are kept under `prepend`, and nobody gets at those on
/// another way.
fn map(key: &str, prepend: &str) -> Vec<Rule> {
    let rule = |action, (for_client, for_server), key: &str, prepend: &str| Rule {
        action,
        for_client,
        for_server,
        key: key.to_owned(),
        prepend: prepend.to_owned(),
    };
    let mapped = rule(Action::Prefix, (true, true), key, prepend);
    if key.is_empty() {
        return vec![mapped, rule(Action::Bad, (true, true), "", "")];
    }
    vec![
        mapped,
        rule(Action::Bad, (false, true), "", key),
        rule(Action::Bad, (true, false), prepend, ""),
        rule(Action::Ok, (true, true), "", ""),
    ]
}

impl XattrMap {
    /// The host's name for a client's.
    pub(crate) fn to_host<'a>(&self, name: &'a CStr) -> Result<Cow<'a, CStr>> {
        let bytes = name.to_bytes();
        let rule = self.0.iter().find(|rule| rule.for_client && bytes.starts_with(rule.key.as_bytes()));
        match rule.map(|rule| (rule.action, &rule.prepend)) {
            Some((Action::Ok, _)) => Ok(Cow::Borrowed(name)),
            Some((Action::Prefix, prepend)) => {
                let host = [prepend.as_bytes(), bytes].concat();
                if host.len() > NAME_MAX {
                    return Err(Errno::ERANGE);
                }
                Ok(Cow::Owned(CString::new(host).map_err(|_| Errno::EINVAL)?))
            }
            Some((Action::Unsupported, _)) => Err(Errno::EOPNOTSUPP),
            Some((Action::Bad, _)) | None => Err(Errno::EPERM),
        }
    }

    /// The client's name for the host's; `None` if it is hidden.
    pub(crate) fn to_client<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        let rule = self.0.iter().find(|rule| rule.for_server && name.starts_with(rule.prepend.as_bytes()))?;
        match rule.action {
            Action::Ok => Some(name),
            Action::Prefix => Some(&name[rule.prepend.len()..]).filter(|name| !name.is_empty()),
            Action::Bad | Action::Unsupported => None,
        }
    }

    /// Whether a client's name is the host's too.
    pub(crate) fn keeps(&self, name: &CStr) -> bool {
        self.to_host(name).is_ok_and(|host| *host == *name)
            && self.to_client(name.to_bytes()) == Some(name.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> XattrMap {
        text.parse().unwrap()
    }

    fn there(map: &XattrMap, name: &CStr) -> Result<String> {
        map.to_host(name).map(|name| name.to_str().unwrap().to_owned())
    }

    fn back<'a>(map: &XattrMap, name: &'a str) -> Option<&'a str> {
        map.to_client(name.as_bytes()).map(|name| std::str::from_utf8(name).unwrap())
    }

    #[test]
    fn all_names_under_a_prefix() {
        for map in [parse(":prefix:all::user.virtiofs.::bad:all:::"), parse("\n:map::user.virtiofs.: ")] {
            assert_eq!(there(&map, c"security.selinux").unwrap(), "user.virtiofs.security.selinux");
            assert_eq!(back(&map, "user.virtiofs.security.selinux"), Some("security.selinux"));
            assert_eq!(back(&map, "security.selinux"), None, "the host's own are hidden");
            assert_eq!(back(&map, "user.virtiofs."), None, "there is no attribute without a name");
        }
    }

    #[test]
    fn some_names_under_a_prefix_and_no_other_way_to_them() {
        let long = "/prefix/all/trusted./user.virtiofs./ /bad/server//trusted./\t/bad/client/user.virtiofs.//\n/ok/all///";
        let map = parse(long);
        assert_eq!(map, parse("/map/trusted./user.virtiofs./"));
        assert_eq!(there(&map, c"trusted.x").unwrap(), "user.virtiofs.trusted.x");
        assert_eq!(there(&map, c"user.virtiofs.trusted.x"), Err(Errno::EPERM));
        assert_eq!(there(&map, c"user.x").unwrap(), "user.x");
        assert_eq!(back(&map, "user.virtiofs.trusted.x"), Some("trusted.x"));
        assert_eq!((back(&map, "trusted.x"), back(&map, "user.x")), (None, Some("user.x")));
    }

    #[test]
    fn scopes_and_refusals() {
        let map = parse(
            ":unsupported:client:system.::;ok;client;user.;;:bad:client:::,ok,server,,user.,:bad:server:::",
        );
        assert_eq!(there(&map, c"system.posix_acl_access"), Err(Errno::EOPNOTSUPP));
        assert_eq!(there(&map, c"user.a").unwrap(), "user.a");
        assert_eq!(there(&map, c"trusted.a"), Err(Errno::EPERM));
        assert_eq!((back(&map, "user.a"), back(&map, "security.a")), (Some("user.a"), None));
        let name = CString::new("n".repeat(250)).unwrap();
        assert_eq!(there(&parse(":map::user.:"), &name).map(|name| name.len()), Ok(255));
        assert_eq!(there(&parse(":map::user.x:"), &name), Err(Errno::ERANGE));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, message) in [
            ("", "there is no rule"),
            (" \n", "there is no rule"),
            (":ok:all::", "rule 1 ends before its prepend"),
            (":ok:all:::/map/x", "rule 2 ends before its key"),
            (":okay:all:::", "unknown type \"okay\""),
            (":ok:guest:::", "unknown scope \"guest\""),
            (":map::x.::ok:all:::", "rule 2 follows a map rule"),
            (":ok:client:::", "all other names of the server"),
            (":prefix:all:user.:x.:", "all other names of the client"),
        ] {
            let error = text.parse::<XattrMap>().unwrap_err().to_string();
            assert!(error.contains(message), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[:/ ]?(map|prefix|ok|bad|all|client|[:/ .a\0é])*") {
            let _ = text.parse::<XattrMap>();
        }

        /// What a client sets it finds again under the same name, and no two of its names are one on the host.
        #[test]
        fn a_map_loses_no_name(key in "[a-c.]{0,4}", prepend in "[a-c.]{1,4}", a in "[a-c.]{1,8}", b in "[a-c.]{1,8}") {
            let map = parse(&format!(":map:{key}:{prepend}:"));
            let host = |name: &str| map.to_host(&CString::new(name).unwrap()).map(Cow::into_owned).ok();
            if let Some(on_host) = host(&a) {
                let again = map.to_client(on_host.to_bytes());
                // A name that the client keeps as it is, and the host's side would take for a mapped one, is refused.
                prop_assert!(again == Some(a.as_bytes()) || again.is_none());
                prop_assert!(a == b || host(&b) != Some(on_host));
            }
        }
    }
}
