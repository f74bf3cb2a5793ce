"""`true` on many hosts by the parallel-ssh library; exit status 1 when a host failed.

python parallel_ssh.py KEY PORT HOST...
"""

import getpass
import sys

from pssh.clients import ParallelSSHClient  # type: ignore[import-not-found]  # in the benches' own venv

key, port, *hosts = sys.argv[1:]
client = ParallelSSHClient(
    hosts, user=getpass.getuser(), port=int(port), pkey=key, pool_size=len(hosts), allow_agent=False
)
output = client.run_command("true")
client.join(output)
sys.exit(any(each.exit_code != 0 for each in output))
