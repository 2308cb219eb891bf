"""How many threads MXNet runs on and which cores they stay on: decided, set in this process, planned for several.

    import mxq                                     # before mxnet
    mxq.threads.use()                              # one thread per physical core
    mxq.threads.use(4, cores=range(4))             # or four of them, held on CPUs 0 to 3

`plan` gives the CPUs of several processes side by side, `launch_lines` the commands that start them.
"""

from mxq.host.cores import launch_lines, plan, split, usable_cores
from mxq.host.openmp import release_openmp_threads, use, use_physical_cores

__all__ = ["launch_lines", "plan", "release_openmp_threads", "split", "usable_cores", "use", "use_physical_cores"]
