"""How much the process may carry at once."""

from __future__ import annotations


class Budget:
    """Counts connections and UDP sessions against one limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.connections = 0
        self.sessions = 0
        self.refused = 0

    def take_connection(self) -> bool:
        """Room for one more connection, if there is; else one is counted as refused."""
        if not self._room():
            return False
        self.connections += 1
        return True

    def take_session(self) -> bool:
        """The same for a UDP session."""
        if not self._room():
            return False
        self.sessions += 1
        return True

    def _room(self) -> bool:
        if self.connections + self.sessions < self.limit:
            return True
        self.refused += 1
        return False
