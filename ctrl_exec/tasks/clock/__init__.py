"""When tasks are due: cron, zones, calendars, and what the scheduler makes of them."""
