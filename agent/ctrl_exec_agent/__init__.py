"""The agent: runs allow-listed scripts for trusted dispatchers; standard library only."""
