//! The nodes of the cluster, as CLUSTER NODES tells them. The module API's own list has neither slots nor links, and on some servers no
//! roles (measured).

use std::fmt;
use std::rc::Rc;

/// The name of a node: 40 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; NodeId::LENGTH]);

impl NodeId {
    pub const LENGTH: usize = 40;

    pub fn new(bytes: &[u8]) -> Option<NodeId> {
        let id = <[u8; NodeId::LENGTH]>::try_from(bytes).ok()?;
        id.iter().all(u8::is_ascii_alphanumeric).then_some(NodeId(id))
    }

    pub fn as_bytes(&self) -> &[u8; NodeId::LENGTH] {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.0).unwrap_or_default())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Slots in ranges, both ends included; in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots(Rc<[(u16, u16)]>);

impl Slots {
    pub fn new(mut ranges: Vec<(u16, u16)>) -> Slots {
        ranges.sort_unstable();
        // Ranges that touch become one, so that a part of one range is found in one range.
        let mut joined: Vec<(u16, u16)> = Vec::new();
        for (first, last) in ranges {
            match joined.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => joined.push((first, last)),
            }
        }
        Slots(joined.into())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, slot: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&slot))
    }

    /// Are all of `others` among these?
    pub fn cover(&self, others: &Slots) -> bool {
        others.0.iter().all(|(first, last)| self.0.iter().any(|(low, high)| low <= first && last <= high))
    }
}

/// A slot on its way to or from another node, which only the two of them tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moving {
    pub slot: u16,
    pub other: NodeId,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub id: NodeId,
    /// Host and port for clients, in printable ASCII.
    pub address: Rc<str>,
    pub myself: bool,
    pub primary: bool,
    /// The primary that a replica follows.
    pub follows: Option<NodeId>,
    pub epoch: u64,
    /// This node, or the whole cluster, believes that it does not answer.
    pub failing: bool,
    pub connected: bool,
    pub slots: Slots,
    pub migrating: Vec<Moving>,
    pub importing: Vec<Moving>,
}

/// Those that are known by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes(pub Vec<Node>);

impl Nodes {
    /// Reads what CLUSTER NODES replies. `None`: that is no such reply.
    pub fn parse(text: &[u8]) -> Option<Nodes> {
        let text = std::str::from_utf8(text).ok()?;
        let nodes: Option<Vec<Option<Node>>> = text.lines().filter(|line| !line.is_empty()).map(parse_line).collect();
        let nodes = Nodes(nodes?.into_iter().flatten().collect());
        nodes.myself().is_some().then_some(nodes)
    }

    pub fn myself(&self) -> Option<&Node> {
        self.0.iter().find(|node| node.myself)
    }

    /// The primaries that have slots: one for each shard.
    pub fn shards(&self) -> impl Iterator<Item = &Node> {
        self.0.iter().filter(|node| node.primary && !node.slots.is_empty())
    }
}

/// A node that only shakes hands yet, or whose address is unknown, is none.
fn parse_line(line: &str) -> Option<Option<Node>> {
    let mut words = line.split(' ');
    let (id, address, flags) = (words.next()?, words.next()?, words.next()?);
    let (follows, _ping, _pong, epoch) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let link = words.next()?;
    let has = |wanted: &str| flags.split(',').any(|flag| flag == wanted);
    if has("handshake") || has("noaddr") {
        return Some(None);
    }
    let address = address.split(['@', ',']).next()?;
    let mut node = Node {
        id: NodeId::new(id.as_bytes())?,
        address: address.chars().map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect::<String>().into(),
        myself: has("myself"),
        primary: has("master"),
        follows: NodeId::new(follows.as_bytes()),
        epoch: epoch.parse().ok()?,
        failing: has("fail") || has("fail?"),
        connected: link == "connected",
        slots: Slots::default(),
        migrating: Vec::new(),
        importing: Vec::new(),
    };
    let mut ranges = Vec::new();
    for word in words.filter(|word| !word.is_empty()) {
        match word.strip_prefix('[').and_then(|word| word.strip_suffix(']')) {
            Some(moving) => parse_moving(moving, &mut node)?,
            None => ranges.push(parse_range(word)?),
        }
    }
    node.slots = Slots::new(ranges);
    Some(Some(node))
}

fn parse_range(word: &str) -> Option<(u16, u16)> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && last < 16384).then_some((first, last))
}

/// `slot->-node` or `slot-<-node`.
fn parse_moving(word: &str, node: &mut Node) -> Option<()> {
    let (to, from) = (word.split_once("->-"), word.split_once("-<-"));
    let (list, (slot, other)) = match (to, from) {
        (Some(parts), _) => (&mut node.migrating, parts),
        (None, Some(parts)) => (&mut node.importing, parts),
        (None, None) => return None,
    };
    list.push(Moving { slot: slot.parse().ok().filter(|slot| *slot < 16384)?, other: NodeId::new(other.as_bytes())? });
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(letter: char) -> String {
        letter.to_string().repeat(NodeId::LENGTH)
    }

    #[test]
    fn primaries_with_slots_are_shards() {
        let (a, b, c, d) = (id('a'), id('b'), id('c'), id('d'));
        let text = format!(
            "{a} 127.0.0.1:7001@17001,host.example,shard-id=x myself,master - 0 0 1 connected 0-5 7 6 [93->-{b}] [77-<-{c}]\n\
             {b} 127.0.0.1:7002@17002 master,fail? - 0 1 2 disconnected 8-16383\n\
             {c} ::1:7003@17003 slave {a} 0 1 1 connected\n\
             {d} 127.0.0.1:7004@17004 master - 0 1 4 connected\n\
             {d} :0@0 handshake,noaddr - 0 0 0 disconnected\n"
        );
        let nodes = Nodes::parse(text.as_bytes()).unwrap();
        assert_eq!(nodes.0.len(), 4);
        let myself = nodes.myself().unwrap();
        let moving = |slot, other: &str| vec![Moving { slot, other: NodeId::new(other.as_bytes()).unwrap() }];
        assert_eq!((&myself.migrating, &myself.importing), (&moving(93, &b), &moving(77, &c)));
        assert_eq!((&*myself.address, myself.failing, myself.connected), ("127.0.0.1:7001", false, true));
        assert!(myself.slots.contains(7) && !myself.slots.contains(8));
        let shards: Vec<_> = nodes.shards().map(|node| (node.id.to_string(), node.failing, node.connected)).collect();
        assert_eq!(shards, [(a, false, true), (b, true, false)]);
        assert_eq!(&*nodes.0[2].address, "::1:7003");
    }

    #[test]
    fn slots_are_covered_where_ranges_touch() {
        let slots = Slots::new(vec![(10, 19), (0, 4), (5, 5), (20, 30)]);
        assert!(slots.cover(&Slots::new(vec![(3, 5), (12, 28)])) && slots.cover(&Slots::default()));
        assert!(!slots.cover(&Slots::new(vec![(5, 6)])) && !slots.cover(&Slots::new(vec![(9, 9)])));
        assert!(!Slots::default().cover(&slots));
    }

    #[test]
    fn what_is_no_such_text_is_refused() {
        let a = id('a');
        for text in [
            String::new(),
            "ERR unknown command".to_owned(),
            format!("{a} h:1@2 master - 0 0 1 connected 0-5"),
            format!("{a} h:1@2 myself,master - 0 0 1 connected 5-4"),
            format!("{a} h:1@2 myself,master - 0 0 1 connected 0-16384"),
            format!("{a} h:1@2 myself,master - 0 0 1 connected [5-{a}]"),
            format!("{a}a h:1@2 myself,master - 0 0 1 connected"),
            format!("{a} h:1@2 myself,master - 0 0"),
        ] {
            assert_eq!(Nodes::parse(text.as_bytes()), None, "{text}");
        }
    }
}
