"""The coordinator and its roles, planner and janitor; the election of the one that leads; the membership of workers."""
