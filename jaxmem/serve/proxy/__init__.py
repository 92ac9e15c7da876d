"""One address for many servers: sessions are pinned to one, and go on elsewhere when it is gone."""
