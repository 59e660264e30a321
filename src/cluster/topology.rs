//! Who serves which slot, and which slots are on their way.

use super::nodes::{Moving, Node, NodeId, Nodes};

impl Nodes {
    pub fn owner(&self, slot: u16) -> Option<&Node> {
        self.0.iter().find(|node| node.slots.contains(slot))
    }

    /// Does this node, or the primary it follows, serve the slot?
    pub fn is_mine(&self, slot: u16) -> bool {
        self.shard().is_some_and(|shard| shard.slots.contains(slot))
    }

    /// Is the slot served here, and is nothing under way that would end that?
    pub fn rests_here(&self, slot: u16) -> bool {
        self.is_mine(slot) && self.migrating_to(slot).is_none()
    }

    fn shard(&self) -> Option<&Node> {
        let me = self.myself()?;
        match me.follows {
            Some(primary) => self.find(primary),
            None => Some(me),
        }
    }

    pub fn find(&self, id: NodeId) -> Option<&Node> {
        self.0.iter().find(|node| node.id == id)
    }

    /// The node that a slot of this one is on its way to.
    pub fn migrating_to(&self, slot: u16) -> Option<NodeId> {
        other_side(&self.myself()?.migrating, slot)
    }

    /// The node that a slot comes from to this one.
    pub fn importing_from(&self, slot: u16) -> Option<NodeId> {
        other_side(&self.myself()?.importing, slot)
    }

    /// The primaries but this node, with slots or without, as far as they can be asked now.
    pub fn other_primaries(&self) -> Vec<NodeId> {
        let others = self.0.iter().filter(|node| node.primary && !node.myself && node.connected && !node.failing);
        others.map(|node| node.id).collect()
    }

    /// Is any slot of this node on its way to another?
    pub fn is_migrating(&self) -> bool {
        self.myself().is_some_and(|me| !me.migrating.is_empty())
    }

    /// This node's epoch, or that of its primary. It grows when slots come to it, unless no other node has a greater one.
    pub fn epoch(&self) -> u64 {
        self.myself().map_or(0, |me| me.epoch)
    }

    /// Had this node a slot in `before` that it has not now?
    pub fn has_lost(&self, before: &Nodes) -> bool {
        let Some(old) = before.shard() else { return false };
        !self.shard().is_some_and(|shard| shard.slots.cover(&old.slots))
    }
}

fn other_side(moving: &[Moving], slot: u16) -> Option<NodeId> {
    moving.iter().find(|moving| moving.slot == slot).map(|moving| moving.other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "7ed6192d0e5359194af83c06d9d15f76a0e9b911";
    const B: &str = "8d4f368e63e1e776c330308ce9244a0cb9a424b8";

    fn id(name: &str) -> NodeId {
        NodeId::new(name.as_bytes()).unwrap()
    }

    #[test]
    fn slots_have_owners_and_ways() {
        let text = format!(
            "{A} 127.0.0.1:7000@17000,host myself,master - 0 0 7 connected 0-99 101 [7->-{B}] [200-<-{B}]\n\
             {B} 127.0.0.1:7001@17001 master - 0 1795852950762 2 connected 100 102-16383\n"
        );
        let nodes = Nodes::parse(text.as_bytes()).unwrap();
        let mine = [0, 99, 100, 101, 102, 16383].map(|slot| nodes.is_mine(slot));
        assert_eq!(mine, [true, true, false, true, false, false]);
        assert!(nodes.rests_here(8) && !nodes.rests_here(7) && !nodes.rests_here(100));
        assert_eq!(nodes.owner(100).map(|node| node.id), Some(id(B)));
        assert_eq!((nodes.migrating_to(7), nodes.migrating_to(8)), (Some(id(B)), None));
        assert_eq!((nodes.importing_from(200), nodes.importing_from(7)), (Some(id(B)), None));
        assert!(nodes.is_migrating() && nodes.epoch() == 7 && nodes.find(id(A)).is_some());
    }

    #[test]
    fn a_replica_serves_what_its_primary_serves() {
        let text = format!("{A} h:1@2 myself,slave {B} 0 0 3 connected\n{B} h:3@4 master - 0 0 3 connected 0-5\n");
        let nodes = Nodes::parse(text.as_bytes()).unwrap();
        assert!(nodes.is_mine(5) && !nodes.is_mine(6) && nodes.epoch() == 3);
    }

    #[test]
    fn a_lost_slot_is_noticed() {
        let of = |slots: &str| {
            Nodes::parse(format!("{A} h:1@2 myself,master - 0 0 1 connected {slots}\n").as_bytes()).unwrap()
        };
        let whole = of("0-16383");
        assert!(of("0-4 6-16383").has_lost(&whole) && !whole.has_lost(&of("0-4 6-16383")) && !whole.has_lost(&whole));
        assert!(!whole.has_lost(&Nodes::default()));
    }
}
