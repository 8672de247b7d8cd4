"""Three simulators of time, for three kinds of tests.

1. `virtual_loop`: an asyncio event loop that never waits. When no task can go on, its time jumps to the next timer. For
   code of one process that waits, without Redis or sockets: tests/crawler/pipeline/test_scheduler.

2. `upstream_fleet`: workers with real limiters at a simulated upstream. The scripts of lua/limits/ run in a real Redis,
   on a simulated clock. For rates, pauses and breakers over minutes: tests/coordinator/limits/.

3. `simulation`: schedules of lease and commit. Workers and coordinators are the product's own coroutines, the scripts
   run in a real Redis; there is no event loop. A seed decides who goes on next, which calls fail, and who dies or
   freezes. For the order of commits and the promises of the queue: test_simulation. It consists of

       stage             plays simulations one after another, with changed scripts if a test wants that
       simulation        one schedule: a random part, a part without faults, and the checks at the end
       fault_rates       how often each fault happens in a schedule
       process           one process: coroutines that are resumed one step at a time
       processes         the three kinds of processes: worker, coordinator, and the one that opens the run
       turns             what replaces asyncio: coroutines wait for their next turn
       faulty_client     a process' Redis client, whose calls can fail
       checked_redis     the real Redis; after each script it checks that the promises hold, and that calls of
                         processes whose lease or run has ended are refused
       reference_model   what Redis must know: leases, leader, epoch, state
       truth             what is true outside Redis: the corpus, the pages in Postgres, the clock
       stand_ins         replacements for upstream, parser and Postgres
"""
